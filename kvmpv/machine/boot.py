"""Write what a guest finds at its entry: start info, boot_params, page tables, registers.

docs/abi/boot.md is the contract; boot_params is Linux's zero page (zero-page.rst in its sources).
"""

from __future__ import annotations

import os
import struct

from kvmpv import __version__, abi
from kvmpv.abi import address_map
from kvmpv.errors import BadInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from kvmpv.machine.loader import Kernel
    from kvmpv.memory import GuestMemory

TIMER_KHZ: Final = 1_000_000  # KVM's local APIC timer counts nanoseconds (APIC_BUS_CYCLE_NS is 1)

E820_ENTRY: Final = struct.Struct("<QQI")
E820_TABLE: Final = 0x2D0
E820_COUNT: Final = 0x1E8
LOADER_TYPE_UNDEFINED: Final = 0xFF

PRESENT_WRITABLE: Final = 0x3
LARGE_PAGE: Final = 0x80

# Null, 64-bit code at selector 8, flat data at 16.
GDT_ENTRIES: Final = struct.pack("<3Q", 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF)


class BootInfo:
    """What one boot of one domain is told, apart from its kernel."""

    __slots__ = (
        "apic_ids",
        "boot_vcpus",
        "cmdline",
        "generation",
        "initrd",
        "initrd_size",
        "instance",
        "tsc_khz",
    )

    def __init__(self, cmdline: bytes, apic_ids: list[int], boot_vcpus: int) -> None:
        self.cmdline = cmdline
        self.apic_ids = apic_ids
        self.boot_vcpus = boot_vcpus
        self.initrd = self.initrd_size = 0
        self.tsc_khz = 0
        self.generation = 0
        self.instance = bytes(16)


def write_boot_structures(memory: GuestMemory, kernel: Kernel, info: BootInfo) -> None:
    """Write all that lies below 1 MiB at entry."""
    cmdline = info.cmdline + b"\0"
    if len(cmdline) > address_map.CMDLINE_MAX:
        raise BadInput(
            f"the command line has {len(info.cmdline)} bytes",
            hint=f"a guest takes at most {address_map.CMDLINE_MAX - 1}",
        )
    memory_map = address_map.memory_map(memory.size)
    memory.write(address_map.CMDLINE, cmdline)
    memory.write(address_map.GDT, GDT_ENTRIES)
    write_page_tables(memory)
    _write_boot_params(memory, kernel, info, memory_map)
    memory.write(address_map.MEMORY_MAP, abi.pack_memory_map(memory_map))
    memory.write(address_map.APIC_IDS, abi.pack_apic_ids(info.apic_ids))
    memory.write(address_map.START_INFO, _start_info(info, len(memory_map)))


def _start_info(info: BootInfo, memory_count: int) -> bytes:
    record = abi.StartInfo()
    record.tsc_khz = info.tsc_khz
    record.timer_khz = TIMER_KHZ
    record.boot_vcpus = info.boot_vcpus
    record.max_vcpus = len(info.apic_ids)
    record.apic_ids = address_map.APIC_IDS
    record.memory = address_map.MEMORY_MAP
    record.memory_count = memory_count
    record.cmdline = address_map.CMDLINE
    record.cmdline_size = len(info.cmdline) + 1
    record.initrd = info.initrd
    record.initrd_size = info.initrd_size
    record.generation = info.generation
    record.instance = info.instance
    record.seed = os.urandom(32)
    record.hypervisor = f"kvmpv {__version__}".encode()
    return record.pack()


def _write_boot_params(
    memory: GuestMemory, kernel: Kernel, info: BootInfo, memory_map: list[tuple[int, int, int]]
) -> None:
    page = bytearray(address_map.PAGE)
    page[0x1F1 : 0x1F1 + len(kernel.setup_header)] = kernel.setup_header
    page[0x202:0x206] = b"HdrS"
    page[0x210] = LOADER_TYPE_UNDEFINED
    page[E820_COUNT] = len(memory_map)
    for index, entry in enumerate(memory_map):
        E820_ENTRY.pack_into(page, E820_TABLE + index * E820_ENTRY.size, *entry)
    struct.pack_into("<I", page, 0x228, address_map.CMDLINE)
    struct.pack_into("<II", page, 0x218, info.initrd, info.initrd_size)
    memory.write(address_map.BOOT_PARAMS, page)


def write_page_tables(memory: GuestMemory) -> None:
    """Map the first 4 GiB onto themselves with pages of 2 MiB, as a guest finds them at entry."""
    upper = address_map.PAGE_TABLES + address_map.PAGE
    directories = upper + address_map.PAGE
    memory.write(address_map.PAGE_TABLES, struct.pack("<Q", upper | PRESENT_WRITABLE))
    tables = (directories + i * address_map.PAGE | PRESENT_WRITABLE for i in range(4))
    memory.write(upper, struct.pack("<4Q", *tables))
    flags = PRESENT_WRITABLE | LARGE_PAGE
    entries = range(flags, 4 * address_map.GIB + flags, 2 * address_map.MIB)
    memory.write(directories, struct.pack("<2048Q", *entries))
