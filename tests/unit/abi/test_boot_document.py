"""docs/abi/boot.md shows the map that the loader uses, and every field of start info."""

from __future__ import annotations

import re

from kvmpv import abi
from kvmpv.machine import layout
from tests.unit.abi import header

TEXT = (header.ROOT / "docs/abi/boot.md").read_text()


def row(what: str) -> tuple[int, int | None]:
    """Return where the memory table says that something begins and ends."""
    cells = re.search(rf"^\| (0x\w+) \| (0x\w+)? ?\| .*{re.escape(what)}", TEXT, re.MULTILINE)
    assert cells, what
    return int(cells[1], 16), int(cells[2], 16) if cells[2] else None


def test_memory_table_is_the_loaders() -> None:
    assert row("GDT") == (layout.GDT, None)
    assert row("`boot_params`") == (layout.BOOT_PARAMS, layout.BOOT_PARAMS + layout.PAGE)
    assert row("page tables") == (layout.PAGE_TABLES, layout.PAGE_TABLES + 6 * layout.PAGE)
    assert row("command line") == (layout.CMDLINE, layout.CMDLINE + layout.CMDLINE_MAX)
    assert row("reserved: start info") == (layout.LOW_RAM_END, layout.RESERVED_END)
    assert layout.START_INFO == layout.LOW_RAM_END
    assert layout.MEMORY_MAP < layout.RESERVED_END


def test_tables_of_the_largest_guest_fit_where_they_lie() -> None:
    assert layout.START_INFO + abi.START_INFO.size <= layout.APIC_IDS
    assert layout.APIC_IDS + 4 * layout.MAX_VCPUS <= layout.MEMORY_MAP
    ranges = layout.memory_map(1 << 40)
    assert layout.MEMORY_MAP + len(abi.pack_memory_map(ranges)) <= layout.RESERVED_END


def test_every_field_of_start_info_is_described() -> None:
    named = re.findall(r"`(\w+)`", TEXT)
    assert set(abi.START_INFO.fields) <= set(named)


def test_every_leaf_is_described() -> None:
    leaves = [name for name in header.constants() if name.startswith("CPUID_")]
    assert leaves
    assert all(f"`KVMPV_{name}`" in TEXT for name in leaves if name != "CPUID_LAST")
