"""The address map: RAM of every size is covered once, and nothing of ours lies on anything else."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from kvmpv import abi
from kvmpv.abi import address_map

MEMORY = st.integers(2, 1 << 20).map(lambda mib: mib << 20)


@given(MEMORY)
@example(address_map.MEMORY_MIN)
@example(address_map.GAP_START)
@example(address_map.GAP_START + address_map.MIB)
def test_regions_hold_all_memory_outside_of_the_gap(size: int) -> None:
    regions = address_map.regions(size)
    assert sum(length for _, length in regions) == size
    assert all(
        gpa + length <= address_map.GAP_START or gpa >= address_map.GAP_END
        for gpa, length in regions
    )


@given(MEMORY)
@example(address_map.MEMORY_MIN)
@example(address_map.GAP_START)
def test_memory_map_is_ascending_and_within_the_regions(size: int) -> None:
    entries = address_map.memory_map(size)
    for (start, length, _), (following, _, _) in pairwise(entries):
        assert start + length <= following
    for start, length, _ in entries:
        assert length > 0
        assert any(
            gpa <= start and start + length <= gpa + all_ for gpa, all_ in address_map.regions(size)
        )
    # All of it but the legacy hole, which nothing is in.
    hole = address_map.HIGH_RAM - address_map.RESERVED_END
    assert sum(length for _, length, _ in entries) == size - hole


def test_boot_structures_do_not_overlap() -> None:
    pieces = [
        (address_map.GDT, 24),
        (address_map.BOOT_PARAMS, address_map.PAGE),
        (address_map.PAGE_TABLES, 6 * address_map.PAGE),
        (address_map.CMDLINE, address_map.CMDLINE_MAX),
        (address_map.START_INFO, abi.START_INFO.size),
        (address_map.APIC_IDS, 4 * address_map.MAX_VCPUS),
        (address_map.MEMORY_MAP, 4 * abi.MEMORY_RANGE.size),
    ]
    for (start, length), (following, _) in pairwise(pieces):
        assert start + length <= following
    assert sum(pieces[-1]) <= address_map.RESERVED_END
    # What start info points to stays valid: Linux does not use what is reserved.
    assert all(start >= address_map.LOW_RAM_END for start, _ in pieces[4:])
