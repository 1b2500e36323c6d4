"""The project's own files, as the style tests see them: the same in a clone and in a tarball."""

from __future__ import annotations

import ast
import os
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What builds and tools leave in a checkout; .gitignore names the same.
MADE = {".git", "build", "__pycache__"}
TEXT = {"", ".apt", ".c", ".config", ".h", ".lds", ".lock", ".md", ".py", ".pxd", ".pyi", ".pyx"}
TEXT |= {".S", ".sh", ".toml", ".txt", ".patch"}


@cache
def files() -> tuple[Path, ...]:
    """List the project's text files."""
    found = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in MADE and not _is_cache(name)]
        paths = (Path(folder, name) for name in names)
        found += [path for path in paths if path.suffix in TEXT and path.is_file()]
    return tuple(sorted(found))


def name(path: Path) -> str:
    """Name a file as seen from the checkout's root."""
    return str(path.relative_to(ROOT))


def below(*folders: str, suffix: str = ".py") -> list[Path]:
    """List the files of some folders that end in ``suffix``."""
    roots = [ROOT / folder for folder in folders]
    return [
        path
        for path in files()
        if path.name.endswith(suffix) and any(path.is_relative_to(root) for root in roots)
    ]


def directly(*folders: str) -> list[Path]:
    """List the files that lie in some folders themselves."""
    return [path for path in files() if name(path.parent) in folders]


@cache
def parsed(path: Path) -> ast.Module:
    """Parse a Python file, once."""
    return ast.parse(path.read_text(), filename=name(path))


def module_name(path: Path) -> str:
    """Give the dotted name of a file of the package."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> list[tuple[int, str]]:
    """List every module that a file names in an import, with the line: those for types too."""
    own = module_name(path)
    package = own if path.name == "__init__.py" else own.rpartition(".")[0]
    found = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.lineno, target) for target in _targets(node, package)]
    return found


def _targets(node: ast.ImportFrom, package: str) -> list[str]:
    """Resolve ``from X import a, b``: a and b may be modules of their own."""
    base = node.module or ""
    if node.level:
        above = package.split(".")
        base = ".".join([*above[: len(above) - node.level + 1], *([base] if base else [])])
    if base.partition(".")[0] == "kvmpv":
        return [f"{base}.{alias.name}" for alias in node.names]
    return [base]


def _is_cache(name: str) -> bool:
    return name.endswith((".egg-info", "_cache")) or name == ".hypothesis"
