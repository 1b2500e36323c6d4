"""A disk's queue as an object: started, paused, stopped, counted."""

from __future__ import annotations

import os
import select
import struct
import time
from typing import TYPE_CHECKING

import pytest

from kvmpv.dataplane.block import Disk, Limits
from kvmpv.errors import HostError
from tests.unit.dataplane.guest import AVAIL, DESC, LAYOUT, NEXT, USED, WRITE, Guest

if TYPE_CHECKING:
    from collections.abc import Iterator

SECTORS = 128
HEADER, DATA, STATUS = 0x1000, 0x1200, 0x1100


class Queue:
    """Queue 0 of a null device, and the driver's side of it."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.events, self.kick, self.call, self.err = (
            os.eventfd(0, os.EFD_NONBLOCK) for _ in range(4)
        )
        self.disk = Disk(-1, SECTORS, self.events)
        self.disk.set_limits(Limits())
        self.disk.set_memory([(gpa, size, guest.base + at) for gpa, size, at in LAYOUT])
        guest.put(HEADER, struct.pack("<IIQ", 0, 0, 0))
        guest.describe(0, HEADER, 16, NEXT, 1)
        guest.describe(1, DATA, 512, NEXT | WRITE, 2)
        guest.describe(2, STATUS, 1, WRITE)
        self.posted = 0

    def start(self, size: int = 8, desc: int = DESC) -> None:
        at = self.guest.base
        places = (at + desc, at + AVAIL, at + USED)
        fds = (self.kick, self.call, self.err)
        base = self.guest.used_index()
        self.disk.start(0, size, *places, 0, base, 0, *fds, True)

    def post(self) -> None:
        self.guest.offer(self.posted, 0)
        self.posted += 1
        self.guest.avail_index(self.posted)
        os.eventfd_write(self.kick, 1)

    def done(self, count: int, seconds: float = 5) -> bool:
        """Wait until so many have come back."""
        poll = select.poll()
        poll.register(self.call, select.POLLIN)
        end = time.monotonic() + seconds
        while self.guest.used_index() != count and time.monotonic() < end:
            if poll.poll(max(end - time.monotonic(), 0) * 1000):
                os.eventfd_read(self.call)
        return self.guest.used_index() == count

    def close(self) -> None:
        if self.disk.running(0):
            self.disk.stop(0)
        for fd in (self.events, self.kick, self.call, self.err):
            os.close(fd)


@pytest.fixture
def queue() -> Iterator[Queue]:
    made = Queue(Guest())
    yield made
    made.close()


def test_request_is_served_and_counted(queue: Queue) -> None:
    queue.start()
    queue.post()
    assert queue.done(1)
    assert queue.disk.counters()["reads"] == 1
    assert queue.disk.counters()["read_bytes"] == 512


def test_what_was_offered_before_the_start_needs_no_kick(queue: Queue) -> None:
    queue.guest.offer(0, 0)
    queue.guest.avail_index(1)
    queue.start()
    assert queue.done(1)


def test_paused_device_takes_nothing_until_it_goes_on(queue: Queue) -> None:
    queue.start()
    for _ in range(3):
        queue.disk.pause(True)
        before = queue.guest.used_index()
        queue.post()
        assert not queue.done(before + 1, seconds=0.02)
        queue.disk.pause(False)
        assert queue.done(before + 1)


def test_stopped_queue_says_where_it_would_go_on(queue: Queue) -> None:
    queue.start()
    queue.post()
    assert queue.done(1)
    assert queue.disk.stop(0) == 1
    assert not queue.disk.running(0)
    queue.start()
    queue.post()
    assert queue.done(2)
    assert queue.disk.counters()["reads"] == 2  # over both


def test_queue_that_is_stopped_at_once_has_taken_nothing_by_halves(queue: Queue) -> None:
    for _ in range(50):
        before = queue.guest.used_index()
        queue.post()
        queue.start()
        base = queue.disk.stop(0)
        assert queue.guest.used_index() == base
        assert base in (before, before + 1)
        queue.posted = base
        queue.guest.avail_index(base)


@pytest.mark.parametrize(("size", "desc"), [(7, DESC), (0, DESC), (8, DESC + 8), (8, 0x2FC0)])
def test_ring_that_is_none_is_refused(queue: Queue, size: int, desc: int) -> None:
    with pytest.raises(HostError):
        queue.start(size, desc)


def test_queue_runs_once(queue: Queue) -> None:
    queue.start()
    with pytest.raises(HostError):
        queue.start()
    with pytest.raises(HostError):
        queue.disk.stop(1)


def test_broken_queue_is_named(queue: Queue) -> None:
    queue.guest.describe(0, HEADER, 0)
    queue.start()
    queue.post()
    for told in (queue.err, queue.events):
        poll = select.poll()
        poll.register(told, select.POLLIN)
        assert poll.poll(5000)
    assert queue.disk.faults() == {0: "empty buffer"}


def test_overlapping_memory_is_refused(queue: Queue) -> None:
    with pytest.raises(HostError):
        queue.disk.set_memory([(0, 4096, 4096), (4095, 1, 8192)])
