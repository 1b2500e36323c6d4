"""The header, as the C compiler reads it, and the mirror in Python agree."""

from __future__ import annotations

import subprocess
from pathlib import Path

from kvmpv import abi
from kvmpv.abi.layout import Layout
from tests.unit.abi import header

# What the mirror has beyond the header: made of its numbers, or this VMM's own choice.
OWN = {"VERSION", "FEATURES", "GATE_PORT_NUMBER", "DOORBELL_PORT"}


def mirrored() -> dict[str, int]:
    return {n: v for n, v in vars(abi).items() if n.isupper() and isinstance(v, int)}


def layouts() -> dict[str, Layout]:
    return {n.lower(): v for n, v in vars(abi).items() if isinstance(v, Layout)}


def test_every_number_is_the_same_in_both() -> None:
    ours = mirrored()
    ours.pop("TYPE_CHECKING")
    assert ours.keys() >= OWN
    assert {n: v for n, v in ours.items() if n not in OWN} == header.constants()


def test_composed_numbers_are_what_the_header_offers() -> None:
    numbers = header.constants()
    assert numbers["VERSION_MAJOR"] << 16 | numbers["VERSION_MINOR"] == abi.VERSION
    assert sum(v for n, v in numbers.items() if n.startswith("FEATURE_")) == abi.FEATURES


def test_signature_is_the_three_registers() -> None:
    registers = abi.SIGNATURE_EBX, abi.SIGNATURE_ECX, abi.SIGNATURE_EDX
    assert b"".join(each.to_bytes(4, "little") for each in registers) == abi.SIGNATURE
    source = '#include <stdio.h>\n#include "kvmpv.h"\nint main(void) { puts(KVMPV_SIGNATURE); }\n'
    assert header.run_c(source).strip().encode() == abi.SIGNATURE


def test_every_record_has_the_layout_that_c_gives_it() -> None:
    lines = []
    for name in header.structs():
        record = layouts()[name]
        lines.append(f"{name} {record.size}")
        ends = [*list(record.offset.values())[1:], record.size]
        for field, end in zip(record.fields, ends, strict=True):
            lines.append(f"{name}.{field} {record.offset[field]} {end - record.offset[field]}")
    assert "\n".join(lines) + "\n" == header.layout()


def test_no_record_is_missing_in_either() -> None:
    assert layouts().keys() == header.structs().keys()


def test_layout_is_the_one_that_guests_were_built_with() -> None:
    assert header.layout() == Path(__file__).with_name("reference.sizes").read_text()


def test_call_numbers_are_used_once() -> None:
    numbers = [v for n, v in header.constants().items() if n.startswith("HC_")]
    assert len(numbers) == len(set(numbers))


def test_header_can_be_included_in_assembler(tmp_path: Path) -> None:
    names = [n for n in header.macros("-D__ASSEMBLY__") if n != "SIGNATURE"]
    assert sorted(header.constants()) == names
    source = tmp_path / "all.S"
    lines = "".join(f"\t.quad KVMPV_{name}\n" for name in names)
    source.write_text(f'#include "kvmpv.h"\n\t.data\n{lines}')
    argv = [*header.GCC, "-D__ASSEMBLY__", "-c", str(source), "-o", str(tmp_path / "all.o")]
    subprocess.run(argv, check=True)
