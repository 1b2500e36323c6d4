"""Hostile memory and rings: what does not fit together is refused, and leaks nothing."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

import pytest

from kvmpv.vhostuser import message
from kvmpv.vhostuser.message import (
    ADDRESSES,
    ONE_REGION,
    REGION,
    STATE,
    TABLE,
    U64,
)
from tests.unit.vhostuser.peer import MIB, SEALS, USER, Peer, Recorder, memfd, refused

if TYPE_CHECKING:
    from collections.abc import Callable

TOP = 1 << 64


def table(*regions: tuple[int, int, int, int], count: int | None = None) -> bytes:
    head = TABLE.pack(len(regions) if count is None else count, 0)
    return head + b"".join(REGION.pack(*region) for region in regions)


# ---- memory

GOOD = (0, MIB, USER, 0)


@pytest.mark.parametrize(
    ("regions", "match"),
    [
        ([(0, 0, USER, 0)], "cannot be"),
        ([(TOP - MIB + 4096, MIB, USER, 0)], "cannot be"),
        ([(0, MIB, TOP - 4096, 0)], "cannot be"),
        ([(0, TOP - 1, 0, 0)], "cannot be mapped"),
        ([(0, MIB, USER, 1)], "cannot be mapped"),
        ([(0, MIB, USER, TOP - 4096)], "cannot be mapped"),
        ([(0, 2 * MIB, USER, 0)], "truncated"),
        ([(0, MIB, USER, 4096)], "truncated"),
        ([GOOD, (MIB - 1, MIB, USER + MIB, 0)], "overlap"),
        ([GOOD, (MIB, MIB, USER + MIB - 1, 0)], "overlap"),
        ([GOOD, GOOD], "overlap"),
        ([(0, MIB, USER, 0), (1 << 40, MIB, 0, 0), (4096, 4096, 1 << 50, 0)], "overlap"),
    ],
)
def test_memory_that_cannot_be_is_refused(
    peer: Peer, regions: list[tuple[int, int, int, int]], match: str
) -> None:
    fds = [memfd(MIB) for _ in regions]
    assert match in refused(peer, message.SET_MEM_TABLE, table(*regions), *fds)
    assert peer.session.regions == []


@pytest.mark.parametrize(
    ("payload", "fds"),
    [
        (b"", 0),
        (table(), 0),
        (table(GOOD)[:-1], 1),
        (table(GOOD) + b"\0", 1),
        (table(GOOD), 0),
        (table(GOOD), 2),
        (table(GOOD, count=2), 2),
        (table(GOOD, count=0xFFFFFFFF), 1),
        (table(*[(n << 30, 4096, n << 30, 0) for n in range(9)]), 8),
    ],
)
def test_a_table_that_does_not_fit_together_is_refused(
    peer: Peer, payload: bytes, fds: int
) -> None:
    refused(peer, message.SET_MEM_TABLE, payload, *[memfd(MIB) for _ in range(fds)])


@pytest.mark.parametrize("seals", [0, fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW])
def test_memory_that_could_be_truncated_is_refused(peer: Peer, seals: int) -> None:
    said = refused(peer, message.SET_MEM_TABLE, table(GOOD), memfd(MIB, seals))
    assert "could be truncated" in said


def test_memory_that_could_be_truncated_is_taken_where_the_user_says_so() -> None:
    peer = Peer()
    peer.device.unsealed = True
    fd = memfd(MIB, 0)
    peer.send(message.SET_MEM_TABLE, table(GOOD), fd)
    assert [region.size for region in peer.session.regions] == [MIB]
    os.close(fd)
    short = memfd(MIB - 4096, 0)
    assert "truncated" in refused(peer, message.SET_MEM_TABLE, table(GOOD), short)
    peer.close()


@pytest.mark.parametrize(
    "opened",
    [
        lambda: os.open("/dev/zero", os.O_RDWR),
        lambda: os.open("/", os.O_RDONLY),
        lambda: os.eventfd(0),
        lambda: os.dup(0),
    ],
)
def test_what_is_no_memory_is_refused(peer: Peer, opened: Callable[[], int]) -> None:
    refused(peer, message.SET_MEM_TABLE, table(GOOD), opened())
    peer.device.unsealed = True
    refused(peer, message.SET_MEM_TABLE, table(GOOD), opened())


def test_memory_that_may_not_be_written_is_refused(peer: Peer) -> None:
    sealed = memfd(MIB, SEALS & ~fcntl.F_SEAL_SEAL | fcntl.F_SEAL_WRITE)
    assert "cannot be mapped" in refused(peer, message.SET_MEM_TABLE, table(GOOD), sealed)
    whole = memfd(MIB)
    read_only = os.open(f"/proc/self/fd/{whole}", os.O_RDONLY)
    os.close(whole)
    assert "cannot be mapped" in refused(peer, message.SET_MEM_TABLE, table(GOOD), read_only)


def test_memory_is_mapped_once_for_all_sessions() -> None:
    peers = [Peer(), Peer()]
    fd = memfd(MIB)
    for peer in peers:
        peer.send(message.SET_MEM_TABLE, table(GOOD), fd)
    os.close(fd)
    first, second = (peer.session.regions[0] for peer in peers)
    assert first.address == second.address
    peers[0].close()
    assert bytes(second.view[:4]) == bytes(4)
    peers[1].close()


def test_a_region_is_removed_by_all_of_its_name(peer: Peer) -> None:
    peer.negotiate()
    peer.share()
    for wrong in ((1, MIB, USER), (0, MIB - 1, USER), (0, MIB, USER + 1)):
        assert "no memory region" in refused(
            peer, message.REM_MEM_REG, ONE_REGION.pack(0, *wrong, 0)
        )
    peer.send(message.REM_MEM_REG, ONE_REGION.pack(0, 0, MIB, USER, 5))
    assert peer.session.regions == []


def test_regions_beyond_the_slots_are_refused(peer: Peer) -> None:
    peer.negotiate()
    fd = memfd(MIB)
    for number in range(message.SLOTS_MAX):
        where = (number * MIB, MIB, USER + number * MIB, 0)
        peer.send(message.ADD_MEM_REG, ONE_REGION.pack(0, *where), fd)
    beyond = ONE_REGION.pack(0, 1 << 40, MIB, 1 << 40, 0)
    assert "more than" in refused(peer, message.ADD_MEM_REG, beyond, fd)


# ---- rings


def test_a_ring_before_its_memory_is_refused(peer: Peer) -> None:
    peer.negotiate()
    assert "before there is memory" in refused(
        peer, message.SET_VRING_ADDR, ADDRESSES.pack(0, 0, 0, 0, 0, 0)
    )
    assert "before it has memory" in refused(
        peer, message.SET_VRING_KICK, U64.pack(0), os.eventfd(0)
    )


@pytest.mark.parametrize("num", [0, 3, 48, 65536, 0x80000000, 0xFFFFFFFF])
def test_a_ring_of_an_odd_size_is_refused(peer: Peer, num: int) -> None:
    assert "entries" in refused(peer, message.SET_VRING_NUM, STATE.pack(0, num))


@pytest.mark.parametrize(
    "parts",
    [
        (USER - 16, USER, USER),
        (USER + MIB - 255, USER, USER),
        (USER + MIB - 256 + 16, USER, USER),
        (USER + 8, USER, USER),
        (USER, USER + 2, USER),
        (USER, USER, USER + 1),
        (USER, USER + MIB - 128, USER),
        (USER, USER, USER + MIB - 32),
        (TOP - 16, USER, USER),
        (0, 0, 0),
        (TOP - 1, TOP - 1, TOP - 1),
    ],
)
def test_a_ring_that_does_not_lie_in_memory_is_refused(
    peer: Peer, parts: tuple[int, int, int]
) -> None:
    peer.share()
    peer.send(message.SET_VRING_NUM, STATE.pack(0, 16))
    assert "no place for a ring" in refused(
        peer, message.SET_VRING_ADDR, ADDRESSES.pack(0, 0, *parts, 0)
    )


def test_a_ring_across_two_regions_is_refused(peer: Peer) -> None:
    fd = memfd(2 * MIB)
    halves = table((0, MIB, USER, 0), (MIB, MIB, USER + MIB, MIB))
    peer.send(message.SET_MEM_TABLE, halves, fd, fd)
    os.close(fd)
    peer.send(message.SET_VRING_NUM, STATE.pack(0, 16))
    across = ADDRESSES.pack(0, 0, USER + MIB - 16, USER, USER, 0)
    assert "no place" in refused(peer, message.SET_VRING_ADDR, across)


def test_a_ring_that_grew_out_of_memory_is_refused_at_its_start(peer: Peer) -> None:
    peer.share()
    peer.send(message.SET_VRING_NUM, STATE.pack(0, 16))
    end = USER + MIB
    peer.send(message.SET_VRING_ADDR, ADDRESSES.pack(0, 0, end - 256, end - 256, USER, 0))
    peer.send(message.SET_VRING_NUM, STATE.pack(0, 32768))
    assert "no place" in refused(peer, message.SET_VRING_KICK, U64.pack(0), os.eventfd(0))


@pytest.mark.parametrize(
    "request_number",
    [
        *(message.SET_VRING_NUM, message.SET_VRING_BASE, message.GET_VRING_BASE),
        *(message.SET_VRING_ENABLE,),
    ],
)
@pytest.mark.parametrize("index", [4, 256, 0xFFFFFFFF])
def test_a_queue_that_the_device_has_not_is_refused(request_number: int, index: int) -> None:
    peer = Peer()
    assert "has no queue" in refused(peer, request_number, STATE.pack(index, 1))
    peer.close()


@pytest.mark.parametrize("value", [4, 0x200, 1 << 63])
def test_an_eventfd_for_no_queue_is_refused(peer: Peer, value: int) -> None:
    refused(peer, message.SET_VRING_CALL, U64.pack(value), os.eventfd(0))


@pytest.mark.parametrize("request_number", [12, 13, 14])
def test_an_eventfd_comes_or_is_said_not_to(request_number: int) -> None:
    peer = Peer()
    peer.share()
    peer.describe()
    refused(peer, request_number, U64.pack(0))
    refused(peer, request_number, U64.pack(message.VRING_NO_FD), os.eventfd(0))
    peer.send(request_number, U64.pack(message.VRING_NO_FD))
    peer.close()


@pytest.mark.parametrize("request_number", [12, 13, 14])
def test_what_is_no_eventfd_is_refused(request_number: int) -> None:
    peer = Peer()
    peer.share()
    peer.describe()
    reader, writer = os.pipe()
    assert "no eventfd" in refused(peer, request_number, U64.pack(0), reader)
    assert "no eventfd" in refused(peer, request_number, U64.pack(0), writer)
    assert "no eventfd" in refused(peer, request_number, U64.pack(0), memfd(8))
    peer.close()


def test_a_ring_that_runs_keeps_its_shape(peer: Peer) -> None:
    peer.share()
    peer.describe()
    kick = peer.kick()
    refused(peer, message.SET_VRING_NUM, STATE.pack(0, 32))
    refused(peer, message.SET_VRING_BASE, STATE.pack(0, 1))
    refused(peer, message.SET_FEATURES, U64.pack(1 << 32))
    assert not os.get_blocking(kick)
    os.close(kick)


def test_a_base_beyond_sixteen_bits_is_refused(peer: Peer) -> None:
    refused(peer, message.SET_VRING_BASE, STATE.pack(0, 65536))


def test_memory_may_not_go_from_under_a_ring(peer: Peer) -> None:
    peer.negotiate()
    peer.share()
    peer.describe()
    kick = peer.kick()
    gone = ONE_REGION.pack(0, 0, MIB, USER, 0)
    refused(peer, message.REM_MEM_REG, gone)
    assert isinstance(peer.device, Recorder)
    assert peer.device.running == {}
    os.close(kick)
