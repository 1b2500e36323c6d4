"""The address map of a paravirtualised guest, and its limits: where RAM lies, what is put there.

docs/abi/boot.md shows the same map to guests' authors.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

MIB: Final = 1 << 20
GIB: Final = 1 << 30
PAGE: Final = 4096

# Boot structures, below 640 KiB. A guest may reuse what is not in the reserved range.
GDT: Final = 0x500
BOOT_PARAMS: Final = 0x7000
PAGE_TABLES: Final = 0x9000  # PML4, PDPT and four page directories: up to 0xf000
CMDLINE: Final = 0x20000
CMDLINE_MAX: Final = 2048  # COMMAND_LINE_SIZE of Linux on x86, the NUL included

LOW_RAM_END: Final = 0x9E000
START_INFO: Final = 0x9E000
APIC_IDS: Final = 0x9E400
MEMORY_MAP: Final = 0x9F000
RESERVED_END: Final = 0xA0000
HIGH_RAM: Final = 1 * MIB

# Above it come the local APICs and, for other kinds of guest, devices.
GAP_START: Final = 3 * GIB
GAP_END: Final = 4 * GIB

MEMORY_MIN: Final = 2 * MIB
MAX_VCPUS: Final = 254  # APIC ids 0 to 253; 255 is the broadcast of 8-bit ids


def regions(size: int) -> list[tuple[int, int]]:
    """Return ``(gpa, size)`` of the regions that ``size`` bytes of memory are laid out in."""
    below = min(size, GAP_START)
    return [(0, below)] + ([(GAP_END, size - below)] if size > below else [])


def memory_map(size: int) -> list[tuple[int, int, int]]:
    """Return ``(address, length, type)`` as start info and e820 have it; 1 RAM, 2 reserved."""
    entries = [
        (0, LOW_RAM_END, 1),
        (LOW_RAM_END, RESERVED_END - LOW_RAM_END, 2),
        (HIGH_RAM, min(size, GAP_START) - HIGH_RAM, 1),
    ]
    if size > GAP_START:
        entries.append((GAP_END, size - GAP_START, 1))
    return entries
