"""Build the compiled parts; everything else about the project is in pyproject.toml."""

from glob import glob
from os.path import dirname

from Cython.Build import cythonize
from setuptools import Extension, setup

extensions = [
    Extension(
        path.removesuffix(".pyx").replace("/", "."),
        [path],
        include_dirs=[dirname(path)],
        depends=sorted(glob(f"{dirname(path)}/*.h")),
        extra_compile_args=["-O2", "-std=c11", "-Wall", "-Werror=implicit"],
    )
    for path in sorted(glob("kvmpv/**/*.pyx", recursive=True))
]

setup(ext_modules=cythonize(extensions, language_level=3, build_dir="build/cython"))
