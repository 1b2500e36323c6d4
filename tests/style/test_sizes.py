"""Files and functions stay small enough to be read in one go."""

from __future__ import annotations

import ast

from tests.style import tree

FILE_LINES = 600
FUNCTION_LINES = 60
SCRIPT_LINES = 20
CODE = ("kvmpv", "scripts", "tests", "examples", "firmware")


def test_files_are_short() -> None:
    code = [path for end in (".py", ".pyx", ".c", ".S") for path in tree.below(*CODE, suffix=end)]
    lengths = {tree.name(path): path.read_text().count("\n") for path in code}
    assert {name: lines for name, lines in lengths.items() if lines > FILE_LINES} == {}


def test_functions_are_short() -> None:
    long = [
        f"{tree.name(path)}:{node.lineno}: {node.name}"
        for path in tree.below(*CODE)
        for node in ast.walk(tree.parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES
    ]
    assert long == []


def test_scripts_are_thin() -> None:
    lengths = {path.name: path.read_text().count("\n") for path in tree.directly("scripts")}
    assert {name: lines for name, lines in lengths.items() if lines > SCRIPT_LINES} == {}
