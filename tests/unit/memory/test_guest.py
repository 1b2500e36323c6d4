"""Guest memory: nothing outside of a region can be reached, whatever a guest's registers hold."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvmpv import memory
from kvmpv.errors import BadInput, HostError
from kvmpv.memory import guest as guest_module

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20
LOW, HIGH, HIGH_AT = 2 * MIB, 1 * MIB, 4 << 30
REGISTER = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.integers(0, LOW + 64),
    st.integers(HIGH_AT - 64, HIGH_AT + HIGH + 64),
    st.integers((1 << 64) - 64, (1 << 64) - 1),
)


@pytest.fixture(scope="module")
def ram() -> Iterator[memory.GuestMemory]:
    fd = memory.create_memfd("test", LOW + HIGH)
    with memory.map_regions([(0, LOW, fd, 0), (HIGH_AT, HIGH, fd, LOW)]) as mapped:
        yield mapped
    os.close(fd)


def inside(gpa: int, length: int) -> bool:
    pieces = ((0, LOW), (HIGH_AT, HIGH_AT + HIGH))
    return any(start <= gpa < end and gpa + length <= end for start, end in pieces)


@given(REGISTER, REGISTER)
@example(0, LOW)
@example(0, LOW + 1)
@example(LOW - 1, 1)
@example(LOW, 0)
@example(HIGH_AT, HIGH)
@example((1 << 64) - 1, 2)
@example((1 << 64) - 8, 16)
def test_slice_is_all_of_it_or_nothing(ram: memory.GuestMemory, gpa: int, length: int) -> None:
    found = ram.slice(gpa, length)
    assert (found is not None) == inside(gpa, length)
    assert found is None or len(found) == length


def test_slice_shows_the_memory_itself(ram: memory.GuestMemory) -> None:
    ram.write(HIGH_AT + 5, b"five")
    found = ram.slice(HIGH_AT + 4, 6)
    assert found is not None
    assert bytes(found) == b"\0five\0"
    found[1:5] = b"FIVE"
    assert bytes(ram.regions[1].view[5:9]) == b"FIVE"


def test_clear_zeroes_all(ram: memory.GuestMemory) -> None:
    ram.write(LOW - 3, b"end")
    ram.write(HIGH_AT, b"start")
    ram.clear()
    assert not any(bytes(region.view) != bytes(region.size) for region in ram.regions)


@pytest.mark.parametrize("gpa", [LOW - 3, LOW, HIGH_AT - 2, (1 << 64) - 2])
def test_write_elsewhere_is_refused(ram: memory.GuestMemory, gpa: int) -> None:
    with pytest.raises(BadInput):
        ram.write(gpa, b"four")


def test_file_is_read_into_memory(ram: memory.GuestMemory, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with path.open("rb") as file:
        ram.readinto(0x1000, 4, file.fileno(), 3)
        assert bytes(ram.regions[0].view[0x1000:0x1005]) == b"3456\0"
        with pytest.raises(BadInput, match="truncated"):
            ram.readinto(0x1000, 8, file.fileno(), 3)
        with pytest.raises(BadInput, match="guest memory"):
            ram.readinto(LOW - 2, 4, file.fileno(), 0)


def test_size_is_the_sum(ram: memory.GuestMemory) -> None:
    assert ram.size == LOW + HIGH


def test_overlapping_regions_are_refused() -> None:
    fd = memory.create_memfd("test", 2 * LOW)
    try:
        with pytest.raises(BadInput, match="overlap"):
            memory.map_regions([(MIB, LOW, fd, 0), (0, LOW, fd, LOW)])
    finally:
        os.close(fd)


def test_memory_without_seals_is_refused() -> None:
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, LOW)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    try:
        with pytest.raises(BadInput, match="not sealed"):
            memory.map_regions([(0, LOW, fd, 0)])
    finally:
        os.close(fd)


def test_size_of_sealed_memory_is_final() -> None:
    fd = memory.create_memfd("test", LOW)
    try:
        for size in (0, 2 * LOW):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size)
    finally:
        os.close(fd)


def test_memory_that_cannot_be_is_said_in_a_line() -> None:
    with pytest.raises(HostError, match="cannot make -1 bytes of guest memory"):
        memory.create_memfd("test", -1)


def test_regions_are_aligned_for_huge_pages(ram: memory.GuestMemory) -> None:
    assert {region.address % guest_module.HUGE_PAGE for region in ram.regions} == {0}


def test_failed_mapping_unmaps_what_was_mapped() -> None:
    fd = memory.create_memfd("test", LOW)
    before = _mappings()
    try:
        with pytest.raises(HostError, match="cannot map"):
            memory.map_regions([(0, LOW, fd, 0), (HIGH_AT, 1 << 56, fd, 0)])
    finally:
        os.close(fd)
    assert _mappings() == before


def _mappings() -> int:
    with open("/proc/self/maps") as file:
        return sum("memfd:test" in line for line in file)


def test_each_huge_page_is_asked_for_by_itself_and_busy_ones_twice(
    ram: memory.GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    region = ram.regions[0]
    answers = {0: [0], LOW // 2: [-errno.EAGAIN, 0]}
    monkeypatch.setattr(guest_module, "HUGE_PAGE", LOW // 2)
    asked = []

    def advise(address: int, length: int, advice: int) -> int:
        assert (length, advice) == (LOW // 2, guest_module.MADV_COLLAPSE)
        asked.append(address - region.address)
        return answers[asked[-1]].pop(0)

    monkeypatch.setattr("kvmpv.memory._map.advise", advise)
    assert region.collapse(0, LOW) == 2
    assert asked == [0, LOW // 2, LOW // 2]


def test_collapse_goes_on_behind_what_nothing_was_written_to(
    ram: memory.GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_module, "HUGE_PAGE", LOW // 2)
    answers = iter([-errno.EINVAL, 0])
    monkeypatch.setattr("kvmpv.memory._map.advise", lambda *_: next(answers))
    assert ram.regions[0].collapse(5, LOW - 5) == 1
