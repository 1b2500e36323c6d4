"""docs/abi/boot.md shows the map that the loader uses, and every field of start info."""

from __future__ import annotations

import re

from kvmpv import abi
from kvmpv.abi import address_map
from tests.unit.abi import header

TEXT = (header.ROOT / "docs/abi/boot.md").read_text()


def row(what: str) -> tuple[int, int | None]:
    """Return where the memory table says that something begins and ends."""
    cells = re.search(rf"^\| (0x\w+) \| (0x\w+)? ?\| .*{re.escape(what)}", TEXT, re.MULTILINE)
    assert cells, what
    return int(cells[1], 16), int(cells[2], 16) if cells[2] else None


def test_memory_table_is_the_loaders() -> None:
    assert row("GDT") == (address_map.GDT, None)
    assert row("`boot_params`") == (
        address_map.BOOT_PARAMS,
        address_map.BOOT_PARAMS + address_map.PAGE,
    )
    assert row("page tables") == (
        address_map.PAGE_TABLES,
        address_map.PAGE_TABLES + 6 * address_map.PAGE,
    )
    assert row("command line") == (
        address_map.CMDLINE,
        address_map.CMDLINE + address_map.CMDLINE_MAX,
    )
    assert row("reserved: start info") == (address_map.LOW_RAM_END, address_map.RESERVED_END)
    assert address_map.START_INFO == address_map.LOW_RAM_END
    assert address_map.MEMORY_MAP < address_map.RESERVED_END


def test_tables_of_the_largest_guest_fit_where_they_lie() -> None:
    assert address_map.START_INFO + abi.START_INFO.size <= address_map.APIC_IDS
    assert address_map.APIC_IDS + 4 * address_map.MAX_VCPUS <= address_map.MEMORY_MAP
    ranges = address_map.memory_map(1 << 40)
    assert address_map.MEMORY_MAP + len(abi.pack_memory_map(ranges)) <= address_map.RESERVED_END


def test_every_field_of_start_info_is_described() -> None:
    named = re.findall(r"`(\w+)`", TEXT)
    assert set(abi.START_INFO.fields) <= set(named)


def test_every_leaf_is_described() -> None:
    leaves = [name for name in header.constants() if name.startswith("CPUID_")]
    assert leaves
    assert all(f"`KVMPV_{name}`" in TEXT for name in leaves if name != "CPUID_LAST")
