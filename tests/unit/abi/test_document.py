"""docs/abi/hypercalls.md says of every call what the header says."""

from __future__ import annotations

import re
from functools import cache

import pytest

from kvmpv import abi
from kvmpv.abi.layout import Layout
from tests.unit.abi import header

DOCUMENT = header.ROOT / "docs/abi/hypercalls.md"
REGISTERS = ["RDI", "RSI", "R8", "R9", "R10"]
ROWS = ["Number", "Arguments", "Result", "Errors", "Who", "Since"]
EVERY_CALL = {"EPERM", "ENOSYS"}


class Call:
    """One call's heading and its table."""

    def __init__(self, section: str) -> None:
        heading = re.match(r"KVMPV_(HC_\w+)\(([^)]*)\)\n", section)
        assert heading, section
        self.name, self.arguments = heading.groups()
        cells = re.findall(r"^\| ([A-Z]\w*) \| (.*) \|$", section, re.MULTILINE)
        self.rows = dict(cells)
        assert [key for key, _ in cells] == ROWS, self.name

    @property
    def errors(self) -> set[str]:
        return set(re.findall(r"\bE[A-Z]{2,}\b", self.rows["Errors"]))


@cache
def documented() -> dict[str, Call]:
    sections = re.split(r"^##+ ", DOCUMENT.read_text(), flags=re.MULTILINE)
    calls = [Call(section) for section in sections if section.startswith("KVMPV_HC_")]
    assert len(calls) == len({call.name for call in calls})
    return {call.name: call for call in calls}


def table(columns: int) -> list[tuple[str, ...]]:
    row = r"^\| " + r" \| ".join([r"([^|\n]*?)"] * columns) + r" \|$"
    return re.findall(row, DOCUMENT.read_text(), re.MULTILINE)


NAMES = sorted(name for name in vars(abi) if name.startswith("HC_"))


def test_document_and_header_have_all_calls_and_no_other() -> None:
    assert sorted(documented()) == NAMES
    assert sorted(header.calls()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_number_is_the_headers(name: str) -> None:
    assert int(documented()[name].rows["Number"], 16) == header.constants()[name]


@pytest.mark.parametrize("name", NAMES)
def test_arguments_are_the_headers_in_the_gates_registers(name: str) -> None:
    call = documented()[name]
    arguments, _ = header.calls()[name]
    assert call.arguments == arguments
    names = arguments.split(", ") if arguments else []
    pairs = [f"{register} {each}" for register, each in zip(REGISTERS, names, strict=False)]
    assert call.rows["Arguments"] == (", ".join(pairs) or "none")


@pytest.mark.parametrize("name", NAMES)
def test_errors_are_the_headers(name: str) -> None:
    _, errors = header.calls()[name]
    assert documented()[name].errors == errors
    assert not errors & EVERY_CALL


@pytest.mark.parametrize("name", NAMES)
def test_result_caller_and_version_are_given(name: str) -> None:
    rows = documented()[name].rows
    assert rows["Result"]
    assert rows["Who"].startswith("any vCPU")
    since = tuple(int(part) for part in rows["Since"].split("."))
    assert since <= (abi.VERSION_MAJOR, abi.VERSION_MINOR)


def test_error_table_has_the_headers_numbers() -> None:
    rows = {cells[0]: cells[1] for cells in table(3) if re.fullmatch(r"E[A-Z]+", cells[0])}
    numbers = {n: v for n, v in header.constants().items() if re.fullmatch(r"E[A-Z]+", n)}
    assert {name: int(number) for name, number in rows.items()} == numbers


def test_record_table_has_the_sizes_and_versions() -> None:
    rows = [cells for cells in table(3) if cells[0].startswith("`struct kvmpv_")]
    sizes = {cells[0].strip("`").removeprefix("struct kvmpv_"): cells for cells in rows}
    assert sizes.keys() == header.structs().keys()
    for name, (_, version, size) in sizes.items():
        layout = getattr(abi, name.upper())
        assert isinstance(layout, Layout)
        assert int(size) == layout.size
        assert version == str(getattr(abi, f"{name.upper()}_VERSION", "none"))


def test_requests_and_reserved_numbers_are_mentioned() -> None:
    text = DOCUMENT.read_text()
    for name in header.constants():
        if name.startswith("REQUEST_"):
            assert f"`KVMPV_{name}`" in text
    reserved = re.findall(r"0x[67]\w to 0x[67]f", header.HEADER.read_text())
    assert reserved == re.findall(r"0x[67]\w to 0x[67]f", text)
