"""Registers, events and routes as bytes and back."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpv.errors import BadInput
from kvmpv.kvm import (
    DebugRegs,
    Events,
    Fpu,
    IrqchipRoute,
    MsiRoute,
    MsrRange,
    Regs,
    Segment,
    Sregs,
    routing,
    uapi,
)

RECORDS = {
    Regs: uapi.SIZE_REGS,
    Sregs: uapi.SIZE_SREGS,
    Fpu: uapi.SIZE_FPU,
    Events: uapi.SIZE_VCPU_EVENTS,
    DebugRegs: uapi.SIZE_DEBUGREGS,
}


@pytest.mark.parametrize("kind", RECORDS)
@given(data=st.data())
def test_unpack_then_pack_changes_at_most_padding(kind: Any, data: st.DataObject) -> None:
    raw = data.draw(st.binary(min_size=RECORDS[kind], max_size=RECORDS[kind]))
    record = kind.unpack(raw)
    assert len(record.pack()) == RECORDS[kind]
    assert kind.unpack(record.pack()) == record


def test_records_compare_and_show_by_field() -> None:
    assert Regs(rax=1) == Regs(rax=1)
    assert Regs(rax=1) != Regs(rbx=1)
    assert Regs() != Segment()
    assert "rip=0x10" in repr(Regs(rip=16))
    with pytest.raises(TypeError, match="eax"):
        Regs(eax=1)


def test_flat_segments_are_what_their_names_say() -> None:
    code64, code32, data = Segment.flat_code64(), Segment.flat_code32(), Segment.flat_data()
    assert (code64.l, code64.db, code64.type & 8) == (1, 0, 8)
    assert (code32.l, code32.db, code32.type & 8) == (0, 1, 8)
    assert (data.type & 10, data.limit, data.g) == (2, 0xFFFFFFFF, 1)


def test_routes_are_a_table_with_its_length() -> None:
    table = routing.encode([MsiRoute(24, 0x1_FEE00000, 0x40), IrqchipRoute(4, 2, 4)])
    assert struct.unpack_from("<II", table) == (2, 0)
    assert struct.unpack_from("<7I", table, 8) == (24, 2, 0, 0, 0xFEE00000, 1, 0x40)
    assert struct.unpack_from("<6I", table, 56) == (4, 1, 0, 0, 2, 4)
    assert len(table) == 8 + 2 * uapi.SIZE_IRQ_ROUTING_ENTRY


@given(st.integers(1, 12288), st.binary(max_size=1600))
def test_msr_bitmaps_are_whole_words_for_the_kernel_reads_those(count: int, bits: bytes) -> None:
    made = MsrRange(0, count, bits).bitmap()
    assert len(made) % 8 == 0
    assert count <= len(made) * 8 < count + 64
    assert bytes(made[: len(bits)]) == bits[: len(made)]


@pytest.mark.parametrize("count", [0, -1, 12289])
def test_msr_ranges_of_impossible_size_are_refused(count: int) -> None:
    with pytest.raises(BadInput):
        MsrRange(0, count)
