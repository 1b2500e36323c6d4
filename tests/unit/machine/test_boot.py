"""What a guest finds at its entry: start info, boot_params, page tables."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest

from kvmpv import abi, memory
from kvmpv.abi import address_map
from kvmpv.errors import BadInput
from kvmpv.machine import boot
from kvmpv.machine.loader import Kernel

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 4 << 20
HEADER = bytes(range(0x80))


@pytest.fixture
def ram() -> Iterator[memory.GuestMemory]:
    fd = memory.create_memfd("test", SIZE)
    with memory.map_regions([(0, SIZE, fd, 0)]) as mapped:
        yield mapped
    os.close(fd)


def info() -> boot.BootInfo:
    made = boot.BootInfo(b"loglevel=4 x=y", list(range(5)), 2)
    made.initrd, made.initrd_size = 0x300000, 0x1234
    made.tsc_khz = 2_500_000
    made.generation = 7
    made.instance = bytes(range(16))
    return made


def read(ram: memory.GuestMemory, address: int, length: int) -> bytes:
    found = ram.slice(address, length)
    assert found is not None
    return bytes(found)


def write(ram: memory.GuestMemory, what: boot.BootInfo) -> None:
    boot.write_boot_structures(ram, Kernel(1 << 20, 2 << 20, HEADER), what)


def test_start_info_says_all(ram: memory.GuestMemory) -> None:
    write(ram, info())
    values = abi.START_INFO.unpack(read(ram, address_map.START_INFO, abi.START_INFO.size))
    found = dict(zip(abi.START_INFO.fields, values, strict=True))
    seed, version = found.pop("seed"), found.pop("hypervisor")
    assert found == {
        "version": 1,
        "size": abi.START_INFO.size,
        "flags": 0,
        "tsc_khz": 2_500_000,
        "timer_khz": 1_000_000,
        "boot_vcpus": 2,
        "max_vcpus": 5,
        "apic_ids": address_map.APIC_IDS,
        "memory": address_map.MEMORY_MAP,
        "memory_count": 3,
        "memory_size": abi.MEMORY_RANGE.size,
        "cmdline": address_map.CMDLINE,
        "cmdline_size": 15,
        "initrd": 0x300000,
        "initrd_size": 0x1234,
        "generation": 7,
        "instance": bytes(range(16)),
    }
    assert len(set(seed)) > 8
    assert version.startswith(b"kvmpv ")
    assert version.endswith(b"\0")


def test_what_start_info_points_to_is_there(ram: memory.GuestMemory) -> None:
    write(ram, info())
    assert read(ram, address_map.CMDLINE, 15) == b"loglevel=4 x=y\0"
    assert struct.unpack("<5I", read(ram, address_map.APIC_IDS, 20)) == (0, 1, 2, 3, 4)
    entries = abi.MEMORY_RANGE.unpack_all(
        read(ram, address_map.MEMORY_MAP, 3 * abi.MEMORY_RANGE.size)
    )
    assert [entry[:3] for entry in entries] == address_map.memory_map(SIZE)


def test_every_boot_has_its_own_seed(ram: memory.GuestMemory) -> None:
    at = address_map.START_INFO + abi.START_INFO.offset["seed"]
    seeds = []
    for _ in range(2):
        write(ram, info())
        seeds.append(read(ram, at, 32))
    assert seeds[0] != seeds[1]


def test_boot_params_are_linuxs(ram: memory.GuestMemory) -> None:
    write(ram, info())
    page = read(ram, address_map.BOOT_PARAMS, address_map.PAGE)
    assert page[0x202:0x206] == b"HdrS"
    assert page[0x206:0x210] == HEADER[0x206 - 0x1F1 : 0x210 - 0x1F1]
    assert page[0x210] == 0xFF
    assert struct.unpack_from("<III", page, 0x218) == (0x300000, 0x1234, HEADER_UNTOUCHED)
    assert struct.unpack_from("<I", page, 0x228) == (address_map.CMDLINE,)
    count = page[0x1E8]
    entries = [struct.unpack_from("<QQI", page, 0x2D0 + 20 * index) for index in range(count)]
    assert entries == address_map.memory_map(SIZE)


HEADER_UNTOUCHED = struct.unpack_from("<I", HEADER, 0x220 - 0x1F1)[0]


def test_page_tables_map_four_gigabytes_onto_themselves(ram: memory.GuestMemory) -> None:
    write(ram, info())

    def entry(table: int, index: int) -> int:
        return int.from_bytes(read(ram, table + 8 * index, 8), "little")

    for address in (0, 0x1234567, 0xC0000000, 0xFEE00000, 0xFFFFFFFF):
        upper = entry(address_map.PAGE_TABLES, address >> 39)
        directory = entry(upper & ~0xFFF, address >> 30 & 511)
        page = entry(directory & ~0xFFF, address >> 21 & 511)
        assert page & 0x83 == 0x83  # present, writable, large
        assert page & ~0x1FFFFF == address & ~0x1FFFFF
    assert entry(address_map.PAGE_TABLES, 1) == 0


@pytest.mark.parametrize(("length", "fits"), [(2047, True), (2048, False)])
def test_command_line_of_linuxs_length_fits(
    ram: memory.GuestMemory, length: int, fits: bool
) -> None:
    long = boot.BootInfo(b"x" * length, [0], 1)
    if fits:
        write(ram, long)
        assert read(ram, address_map.CMDLINE, 2048) == b"x" * 2047 + b"\0"
    else:
        with pytest.raises(BadInput, match="the command line has 2048 bytes"):
            write(ram, long)
