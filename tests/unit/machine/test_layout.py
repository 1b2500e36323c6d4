"""The address map: RAM of every size is covered once, and nothing of ours lies on anything else."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from kvmpv import abi
from kvmpv.machine import layout

MEMORY = st.integers(2, 1 << 20).map(lambda mib: mib << 20)


@given(MEMORY)
@example(layout.MEMORY_MIN)
@example(layout.GAP_START)
@example(layout.GAP_START + layout.MIB)
def test_regions_hold_all_memory_outside_of_the_gap(size: int) -> None:
    regions = layout.regions(size)
    assert sum(length for _, length in regions) == size
    assert all(gpa + length <= layout.GAP_START or gpa >= layout.GAP_END for gpa, length in regions)


@given(MEMORY)
@example(layout.MEMORY_MIN)
@example(layout.GAP_START)
def test_memory_map_is_ascending_and_within_the_regions(size: int) -> None:
    entries = layout.memory_map(size)
    for (start, length, _), (following, _, _) in pairwise(entries):
        assert start + length <= following
    for start, length, _ in entries:
        assert length > 0
        assert any(
            gpa <= start and start + length <= gpa + all_ for gpa, all_ in layout.regions(size)
        )
    # All of it but the legacy hole, which nothing is in.
    hole = layout.HIGH_RAM - layout.RESERVED_END
    assert sum(length for _, length, _ in entries) == size - hole


def test_boot_structures_do_not_overlap() -> None:
    pieces = [
        (layout.GDT, 24),
        (layout.BOOT_PARAMS, layout.PAGE),
        (layout.PAGE_TABLES, 6 * layout.PAGE),
        (layout.CMDLINE, layout.CMDLINE_MAX),
        (layout.START_INFO, abi.START_INFO.size),
        (layout.APIC_IDS, 4 * layout.MAX_VCPUS),
        (layout.MEMORY_MAP, 4 * abi.MEMORY_RANGE.size),
    ]
    for (start, length), (following, _) in pairwise(pieces):
        assert start + length <= following
    assert sum(pieces[-1]) <= layout.RESERVED_END
    # What start info points to stays valid: Linux does not use what is reserved.
    assert all(start >= layout.LOW_RAM_END for start, _ in pieces[4:])
