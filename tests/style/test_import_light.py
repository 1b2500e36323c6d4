"""What starts with a domain starts fast: the heavy parts of the standard library stay out."""

from __future__ import annotations

import ast
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.style import tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LIGHT = (
    *("abi", "kvm", "memory", "machine", "hypercall", "virtio", "vhostuser", "vmm"),
    *("dataplane", "dom0", "toolstack"),
)
LIGHT_FILES = (
    *("errors.py", "__init__.py", "agent/__init__.py", "agent/client.py"),
    *("hostnet/__init__.py", "hostnet/tap.py"),
)
LIGHT_COMMANDS = ("cli/__init__.py", "cli/main.py", "cli/run.py", "cli/terminal.py")
HEAVY = {
    "argparse",
    "asyncio",
    "collections",
    "ctypes",
    "dataclasses",
    "enum",
    "inspect",
    "json",
    "logging",
    "pathlib",
    "re",
    "subprocess",
    "threading",
    "typing",
}


def light_files() -> list[Path]:
    """List the files that a domain's start may import."""
    whole = tree.below(*(f"kvmpv/{package}" for package in LIGHT))
    single = (tree.ROOT / "kvmpv" / name for name in LIGHT_FILES + LIGHT_COMMANDS)
    return sorted({*whole, *(path for path in single if path.exists())})


def run_time_imports(body: list[ast.stmt]) -> Iterator[tuple[int, str]]:
    """Find the imports that run when a module is loaded: none in functions, none for types."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or ""
        elif isinstance(node, ast.If):
            for_types = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            yield from run_time_imports(node.orelse if for_types else node.body + node.orelse)
        elif isinstance(node, ast.Try):
            yield from run_time_imports(node.body + node.orelse + node.finalbody)
        elif isinstance(node, ast.ClassDef | ast.With):
            yield from run_time_imports(node.body)


def test_no_file_imports_a_heavy_module() -> None:
    found = [
        f"{tree.name(path)}:{line}: {target}"
        for path in light_files()
        for line, target in run_time_imports(tree.parsed(path).body)
        if target.partition(".")[0] in HEAVY
    ]
    assert found == []


def test_importing_everything_loads_no_heavy_module() -> None:
    names = [tree.module_name(path) for path in light_files() if path.name != "__main__.py"]
    program = (
        "import sys\n"
        f"sys.path.append({str(tree.ROOT)!r})\n"
        f"for name in {names!r}: __import__(name)\n"
        f"heavy = set(sys.modules) & {HEAVY!r}\n"
        "assert not heavy, sorted(heavy)\n"
    )
    argv = [sys.executable, "-IS", "-c", program]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
