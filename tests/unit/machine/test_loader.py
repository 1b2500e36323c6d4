"""The loader believes nothing in a file: what is no kernel is BadInput, and never worse."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kvmpv import memory
from kvmpv.errors import BadInput
from kvmpv.machine import loader
from tests.unit.machine.kernels import CODE, HEADER_FIELDS, LOAD_AT, SEGMENT_FIELDS, bzimage, elf

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
SIZE = 20 * MIB
EDGES = st.sampled_from([0, 1, 2, 3, 55, 56, 57, 255, 1 << 16, SIZE, 1 << 31, 1 << 62, 1 << 63])


@pytest.fixture(scope="module")
def ram() -> Iterator[memory.GuestMemory]:
    fd = memory.create_memfd("test", SIZE)
    with memory.map_regions([(0, SIZE, fd, 0)]) as mapped:
        yield mapped
    os.close(fd)


class File:
    """A file with this content, without a folder."""

    def __init__(self, content: bytes) -> None:
        self.fd = os.memfd_create("file")
        os.write(self.fd, content)

    def __enter__(self) -> int:
        return self.fd

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def load(ram: memory.GuestMemory, content: bytes) -> loader.Kernel:
    with File(content) as fd:
        return loader.load_kernel(ram, fd)


def survives(ram: memory.GuestMemory, content: bytes) -> None:
    try:
        kernel = load(ram, content)
    except BadInput:
        return
    assert 0 < kernel.end <= SIZE
    assert ram.slice(kernel.entry, 1) is not None
    assert len(kernel.setup_header) <= 0x290 - 0x1F1


def test_elf_is_loaded_where_it_says(ram: memory.GuestMemory) -> None:
    ram.clear()
    kernel = load(ram, elf())
    assert (kernel.entry, kernel.end, kernel.setup_header) == (
        LOAD_AT,
        LOAD_AT + 2 * len(CODE),
        b"",
    )
    assert bytes(ram.regions[0].view[LOAD_AT:][: len(CODE) + 1]) == CODE + b"\0"


def test_bzimage_is_loaded_behind_its_setup(ram: memory.GuestMemory) -> None:
    ram.clear()
    kernel = load(ram, bzimage())
    assert (kernel.entry, kernel.end) == (16 * MIB + 0x200, 16 * MIB + 0x10000)
    found = ram.slice(kernel.entry, len(CODE))
    assert found is not None
    assert bytes(found) == CODE
    assert kernel.setup_header[0x202 - 0x1F1 :][:4] == b"HdrS"
    assert len(kernel.setup_header) == 0x202 + 0x6A - 0x1F1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "neither an ELF file nor a bzImage"),
        (b"\x7fELF", "ends within its ELF header"),
        (elf()[:70], "ends within its program headers"),
        (elf()[:-1], "truncated: 1 bytes are missing"),
        (elf(bits=1), "32-bit"),
        (elf(order=2), "32-bit"),
        (elf(machine=183), "another architecture: ELF machine 183"),
        (elf(kind=1), "no executable"),
        (elf(count=0), "no executable"),
        (elf(entry_size=32), "no executable"),
        (elf(entry=SIZE), "entry point 0x1400000 does not lie in guest memory"),
        (elf(table=(1 << 64) - 1), "ends within its program headers"),
        (elf({"kind": 4}), "entry point"),
        (elf({"address": 0x1000}), "a segment at 0x1000, which no kernel can have"),
        (elf({"address": SIZE}), "does not fit into 20 MiB"),
        (elf({"address": (1 << 64) - 8}), "which no kernel can have"),
        (elf({"in_memory": 3}), "which no kernel can have"),
        (elf({"in_memory": 1 << 40}), "does not fit into 20 MiB"),
        (elf({"offset": (1 << 64) - 1}), "bytes are missing"),
        (bzimage()[:600], "ends within its setup header"),
        (bzimage()[:-1], "truncated: 1 bytes are missing"),
        (bzimage(paragraphs=0)[:1200], "a bzImage without a kernel in it"),
        (bzimage(sectors=9, paragraphs=0), "bytes are missing"),
        (bzimage(version=0x20B), "without a 64-bit entry point"),
        (bzimage(xloadflags=0), "without a 64-bit entry point"),
        (bzimage(init_size=8 * MIB), "does not fit into 20 MiB"),
    ],
)
def test_bad_kernel_is_named(ram: memory.GuestMemory, content: bytes, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        load(ram, content)
    assert caught.value.hint


def bits_of(field: str, wide: tuple[str, ...], narrow: tuple[str, ...]) -> int:
    return 64 if field in wide else 8 if field in narrow else 16


@st.composite
def broken_elf(draw: st.DrawFn) -> bytes:
    header: dict[str, int | bytes] = {}
    for field in draw(st.lists(st.sampled_from(HEADER_FIELDS[1:]), max_size=2)):
        bits = bits_of(field, ("entry", "table", "sections"), ("bits", "order", "version"))
        header[field] = draw(EDGES | st.integers(0, (1 << 64) - 1)) % (1 << bits)
    segment = {
        field: draw(EDGES | st.integers(0, (1 << 64) - 1))
        % (1 << (32 if field in ("kind", "flags") else 64))
        for field in draw(st.lists(st.sampled_from(SEGMENT_FIELDS), max_size=3))
    }
    return elf(segment, **header)


@st.composite
def broken_bzimage(draw: st.DrawFn) -> bytes:
    widths = {"sectors": 8, "paragraphs": 32, "jump": 8, "version": 16, "xloadflags": 16}
    widths["init_size"] = 32
    fields = {
        field: draw(EDGES | st.integers(0, (1 << 32) - 1)) % (1 << widths[field])
        for field in draw(st.lists(st.sampled_from(sorted(widths)), max_size=3))
    }
    return bzimage(**fields)


WITH_RAM = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@WITH_RAM
@given(broken_elf(), st.integers(0, 300))
def test_elf_with_any_field_changed_and_cut_is_at_worst_bad_input(
    ram: memory.GuestMemory, content: bytes, cut: int
) -> None:
    survives(ram, content)
    survives(ram, content[:cut])


@WITH_RAM
@given(broken_bzimage(), st.integers(0, 2048))
def test_bzimage_with_any_field_changed_and_cut_is_at_worst_bad_input(
    ram: memory.GuestMemory, content: bytes, cut: int
) -> None:
    survives(ram, content)
    survives(ram, content[:cut])


@given(st.binary(max_size=200), st.sampled_from([b"", b"\x7fELF", b"\x7fELF\2\1"]))
@example(b"", b"\x7fELF\2\1")
def test_any_file_is_at_worst_bad_input(
    ram: memory.GuestMemory, content: bytes, before: bytes
) -> None:
    survives(ram, before + content)


# ---- initrd


def test_initrd_lies_as_high_as_it_can(ram: memory.GuestMemory) -> None:
    kernel = loader.Kernel(LOAD_AT, 2 * MIB, b"")
    with File(b"archive" * 1000) as fd:
        address, size = loader.load_initrd(ram, fd, kernel)
    assert (address, size) == (SIZE - 2 * 4096, 7000)
    found = ram.slice(address, size)
    assert found is not None
    assert bytes(found) == b"archive" * 1000


@pytest.mark.parametrize(("size", "message"), [(0, "empty"), (SIZE, "fit"), (SIZE - MIB, "fit")])
def test_initrd_that_cannot_be_is_refused(ram: memory.GuestMemory, size: int, message: str) -> None:
    kernel = loader.Kernel(LOAD_AT, 2 * MIB, b"")
    with File(b"") as fd:
        os.ftruncate(fd, size)
        with pytest.raises(BadInput, match=message) as caught:
            loader.load_initrd(ram, fd, kernel)
    assert caught.value.hint
