"""Ask the C compiler, and the comments, what kvmpv.h says."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[3]
HEADER = ROOT / "kvmpv/abi/kvmpv.h"
PREFIX = "KVMPV_"

GCC = ("gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{HEADER.parent}")


def preprocess(*flags: str) -> str:
    argv = [*GCC, *flags, "-E", "-dM", str(HEADER)]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def macros(*flags: str) -> list[str]:
    """Return the names of the header's macros without the prefix, in order."""
    names = re.findall(rf"^#define {PREFIX}(\w+) ", preprocess(*flags), re.MULTILINE)
    return sorted(names)


def structs() -> dict[str, list[str]]:
    """Return each struct's fields, by its name without the prefix, in the mirror's spelling."""
    found = {}
    for name, body in re.findall(
        r"^struct kvmpv_(\w+) {\n(.*?)^};", HEADER.read_text(), re.M | re.S
    ):
        found[name] = re.findall(r"^\t\w+ (\w+)(?:\[\d+\])?;", body, re.MULTILINE)
    return found


def run_c(source: str) -> str:
    """Return what a C program prints that includes the header."""
    with TemporaryDirectory() as folder:
        program = Path(folder, "program")
        argv = [*GCC, "-x", "c", "-", "-o", str(program)]
        subprocess.run(argv, check=True, input=source, text=True)
        return subprocess.run([program], check=True, capture_output=True, text=True).stdout


@cache
def constants() -> dict[str, int]:
    """Return the value of each number, as C sees it."""
    names = [name for name in macros() if name != "SIGNATURE"]
    prints = "".join(f'printf("{n} %lld\\n", (long long){PREFIX}{n});' for n in names)
    output = run_c(f'#include <stdio.h>\n#include "kvmpv.h"\nint main(void) {{ {prints} }}\n')
    return {line.split()[0]: int(line.split()[1]) for line in output.splitlines()}


@cache
def layout() -> str:
    """Return one line for each record, and one for each field with its offset and its size."""
    prints = ""
    for name, fields in structs().items():
        kind = f"struct kvmpv_{name}"
        prints += f'printf("{name} %zu\\n", sizeof({kind}));'
        for field in fields:
            size = f"sizeof((({kind} *)0)->{field})"
            prints += f'printf("{name}.{field} %zu %zu\\n", offsetof({kind}, {field}), {size});'
    includes = '#include <stdio.h>\n#include <stddef.h>\n#include "kvmpv.h"\n'
    return run_c(f"{includes}int main(void) {{ {prints} }}\n")


def calls() -> dict[str, tuple[str, set[str]]]:
    """Return what the comment before each call says: its arguments and its errors."""
    found = {}
    for comment in re.findall(r"/\*.*?\*/", HEADER.read_text(), re.DOTALL):
        text = re.sub(r"\s*\n \*\s*", " ", comment)
        start = re.match(r"/\* KVMPV_HC_(\w+)\(([^)]*)\)", text)
        if start:
            found[f"HC_{start[1]}"] = start[2], set(re.findall(r"-(E[A-Z]+)", text))
    return found
