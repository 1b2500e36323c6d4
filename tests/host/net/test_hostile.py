"""Whatever a driver writes into its rings costs its device, and nobody else anything."""

from __future__ import annotations

import os
import select
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpv.dataplane.net import Pair, Plane, Queue
from kvmpv.errors import BadInput, HostError
from kvmpv.kvm._ioctl import address
from kvmpv.memory import create_memfd, map_regions
from tests.host.net.card import make_tap
from tests.host.net.namespace import Namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 16
MEMORY = 1 << 21
RINGS = 0x1000  # bytes from the start that hold a queue's three parts
DESC, AVAIL, USED = 0, 0x400, 0x800
DESCRIPTOR = struct.Struct("<QIHH")
NEXT, WRITE = 1, 2

ADDRESS = st.one_of(
    st.integers(0, MEMORY + 4096),
    st.sampled_from([0, MEMORY - 1, MEMORY, (1 << 64) - 1, (1 << 64) - 4096, 1 << 63]),
)
LENGTH = st.one_of(
    st.integers(0, 4096), st.sampled_from([0, 1, 11, 12, 13, 1 << 31, (1 << 32) - 1])
)
LINK = st.integers(0, SIZE + 2)
DESCRIPTORS = st.lists(st.tuples(ADDRESS, LENGTH, st.integers(0, 7), LINK), max_size=SIZE)
HEADS = st.lists(st.integers(0, SIZE + 1), max_size=SIZE)
JUMP = st.one_of(st.just(None), st.integers(0, 0xFFFF))


class Rig:
    """Memory with a canary behind it, and a tap that floods itself."""

    def __init__(self) -> None:
        self.namespace = Namespace()
        self.name, self.fds = make_tap(self.namespace)
        self.outside = self.namespace.packets(self.name)
        self.fd = create_memfd("guest", 2 * MEMORY)
        self.memory = map_regions([(0, 2 * MEMORY, self.fd, 0)])
        self.view = self.memory.regions[0].view
        self.base = address(self.view)
        self.plane = Plane()
        self.plane.set_memory([(0, MEMORY, self.base)])
        self.pair = Pair(self.plane, self.fds[0])
        self.events = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3)]

    def queue(self, transmit: bool) -> Queue:
        kick, call, broken = self.events
        parts = (self.base + DESC, self.base + AVAIL, self.base + USED)
        return Queue(
            self.pair,
            transmit,
            SIZE,
            *parts,
            features=1 << 29 | 1 << 28 | 1 << 32,
            base=0,
            kick=kick,
            call=call,
            broken=broken,
        )

    def close(self) -> None:
        self.plane.set_memory([])
        self.memory.close()
        for fd in (*self.events, *self.fds, self.fd):
            os.close(fd)
        self.namespace.close()


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


def test_place_in_a_pair_is_for_one_queue(rig: Rig) -> None:
    rig.view[:RINGS] = bytes(RINGS)
    first, second = rig.queue(True), rig.queue(True)
    first.start()
    with pytest.raises(HostError, match="busy"):
        second.start()
    first.stop()
    second.start()
    second.stop()


def test_queue_that_cannot_be_started_leaves_its_neighbour_served(rig: Rig) -> None:
    rig.view[:RINGS] = bytes(RINGS)
    first, second = rig.queue(True), rig.queue(False)
    first.start()
    with pytest.raises(HostError, match="exists"):  # for they have one kick
        second.start()
    DESCRIPTOR.pack_into(rig.view, DESC, RINGS, 100, 0, 0)
    struct.pack_into("<H", rig.view, AVAIL + 2, 1)
    os.eventfd_write(rig.events[0], 1)
    assert select.select([rig.events[1]], [], [], 5)[0]
    os.eventfd_read(rig.events[1])
    assert first.stop() == 1
    second.start()
    second.stop()


@given(transmit=st.booleans(), descriptors=DESCRIPTORS, heads=HEADS, jump=JUMP)
def test_junk_breaks_that_ring_or_passes(
    rig: Rig,
    transmit: bool,
    descriptors: list[tuple[int, int, int, int]],
    heads: list[int],
    jump: int | None,
) -> None:
    canary = b"\xa5" * 4096
    rig.view[MEMORY : MEMORY + 4096] = canary
    rig.view[:RINGS] = bytes(RINGS)
    for index, descriptor in enumerate(descriptors):
        DESCRIPTOR.pack_into(rig.view, DESC + 16 * index, *descriptor)
    for slot, head in enumerate(heads):
        struct.pack_into("<H", rig.view, AVAIL + 4 + 2 * slot, head)
    struct.pack_into("<H", rig.view, AVAIL + 2, len(heads) if jump is None else jump)
    queue = rig.queue(transmit)
    queue.start()
    for _ in range(4):
        rig.outside.send(b"\xff" * 12 + b"\x88\xb5" + bytes(200))
    for _ in range(2):
        os.eventfd_write(rig.events[0], 1)
        select.select([rig.events[2]], [], [], 0.002)
    base = queue.stop()
    used = struct.unpack_from("<H", rig.view, USED + 2)[0]
    if not queue.fault and jump is None:
        assert base - used & 0xFFFF <= len(heads)
    assert bytes(rig.view[MEMORY : MEMORY + 4096]) == canary
    for fd in rig.events:
        try:
            os.eventfd_read(fd)
        except BlockingIOError:
            pass


@given(desc=ADDRESS, avail=ADDRESS, used=ADDRESS, size=st.integers(0, 70000))
def test_ring_that_does_not_lie_in_memory_is_refused(
    rig: Rig, desc: int, avail: int, used: int, size: int
) -> None:
    at = [(rig.base + part) % (1 << 64) for part in (desc, avail, used)]
    sizes = (16 * size, 6 + 2 * size, 6 + 8 * size)
    fits = all(
        part + length <= MEMORY for part, length in zip((desc, avail, used), sizes, strict=True)
    )
    aligned = not (desc % 16 or avail % 2 or used % 4)
    good = fits and aligned and 0 < size <= 32768 and size & (size - 1) == 0
    try:
        Queue(rig.pair, True, size, at[0], at[1], at[2])
    except BadInput:
        assert not good
        return
    assert good
