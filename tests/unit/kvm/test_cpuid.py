"""CPUID tables without a KVM."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvmpv.kvm import CpuidEntry, cpuid, uapi

BY_INDEX = uapi.KVM_CPUID_FLAG_SIGNIFCANT_INDEX
u32 = st.integers(0, 0xFFFFFFFF)
entries = st.lists(st.builds(CpuidEntry, u32, u32, u32, u32, u32, u32, u32), max_size=20)


@given(entries)
def test_decode_undoes_encode(table: list[CpuidEntry]) -> None:
    assert cpuid.decode(cpuid.encode(table)) == table


def test_decode_takes_as_many_as_the_header_says() -> None:
    room = cpuid.buffer(4)
    room[0] = 1
    assert cpuid.decode(room) == [CpuidEntry(0)]


def test_find_minds_the_index_only_where_it_is_significant() -> None:
    table = [CpuidEntry(4, 0, BY_INDEX, eax=10), CpuidEntry(4, 1, BY_INDEX, eax=11), CpuidEntry(1)]
    assert cpuid.find(table, 4, 1) is table[1]
    assert cpuid.find(table, 1, 7) is table[2]
    assert cpuid.find(table, 4, 2) is None


def test_put_replaces_the_same_function_and_index() -> None:
    table = [CpuidEntry(4, 0, BY_INDEX), CpuidEntry(4, 1, BY_INDEX), CpuidEntry(1, eax=1)]
    cpuid.put(table, CpuidEntry(4, 1, BY_INDEX, ebx=5))
    cpuid.put(table, CpuidEntry(1, eax=2))
    cpuid.put(table, CpuidEntry(0x40000100))
    assert [(e.function, e.index, e.eax, e.ebx) for e in table] == [
        (4, 0, 0, 0), (4, 1, 0, 5), (1, 0, 2, 0), (0x40000100, 0, 0, 0),
    ]  # fmt: skip


@given(u32, u32, u32)
def test_edit_gives_and_takes_bits(before: int, give: int, take: int) -> None:
    table = [CpuidEntry(1, ecx=before)]
    cpuid.edit(table, 1, "ecx", give=give, take=take)
    assert table[0].ecx == before & ~take | give


def test_edit_makes_an_entry_to_give_and_none_to_take() -> None:
    table: list[CpuidEntry] = []
    cpuid.edit(table, 6, "eax", take=4)
    assert table == []
    cpuid.edit(table, 6, "eax", give=4)
    cpuid.edit(table, 7, "ebx", index=1, give=1)
    assert table == [CpuidEntry(6, eax=4), CpuidEntry(7, 1, BY_INDEX, ebx=1)]
