"""A guest that does everything wrong: its disk breaks, alone, and works again after a reset."""

from __future__ import annotations

import os
import random
import struct
import time
from typing import TYPE_CHECKING

import pytest

from kvmpv.dataplane.ring import log_bytes
from kvmpv.errors import VhostUserError
from kvmpv.virtio import spec
from tests.host.disks.disk import MIB, Disk, image, on, pattern
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

OK = spec.BLK_S_OK
NEXT, WRITE, INDIRECT = 1, 2, 4
RING = 64


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with Disk(tmp_path, on(image(tmp_path)), neighbours=[f"null={MIB}"]) as made:
        yield made


def describe(disk: Disk, index: int, *fields: int) -> None:
    """Write a descriptor of queue 0: address, length, flags, next."""
    at = disk.rings[0].desc + 16 * index
    struct.pack_into("<QIHH", disk.memory.map, at, *fields)


def offer(disk: Disk, head: int) -> None:
    disk.rings[0].offer(head)
    os.eventfd_write(disk.rings[0].kick, 1)


def head_out_of_range(disk: Disk) -> None:
    offer(disk, RING)


def buffer_outside(disk: Disk) -> None:
    describe(disk, 0, disk.memory.size - 8, 16, 0, 0)
    offer(disk, 0)


def buffer_wraps(disk: Disk) -> None:
    describe(disk, 0, (1 << 64) - 8, 16, 0, 0)
    offer(disk, 0)


def loop(disk: Disk) -> None:
    describe(disk, 0, 0, 16, NEXT, 1)
    describe(disk, 1, 0, 16, NEXT, 0)
    offer(disk, 0)


def readable_behind_writable(disk: Disk) -> None:
    describe(disk, 0, 0, 16, NEXT | WRITE, 1)
    describe(disk, 1, 0, 16, 0, 0)
    offer(disk, 0)


def indirect_in_indirect(disk: Disk) -> None:
    table = disk.memory.put(struct.pack("<QIHH", 0, 16, INDIRECT, 0))
    describe(disk, 0, table, 16, INDIRECT, 0)
    offer(disk, 0)


def status_in_what_is_read(disk: Disk) -> None:
    describe(disk, 0, disk.memory.put(bytes(16)), 16, 0, 0)
    offer(disk, 0)


def header_too_short(disk: Disk) -> None:
    describe(disk, 0, disk.memory.put(bytes(16)), 8, NEXT, 1)
    describe(disk, 1, disk.memory.take(16), 16, WRITE, 0)
    offer(disk, 0)


def index_jumps(disk: Disk) -> None:
    ring = disk.rings[0]
    struct.pack_into("<H", disk.memory.map, ring.avail + 2, RING + 1)
    os.eventfd_write(ring.kick, 1)


CRIMES = [
    *(head_out_of_range, buffer_outside, buffer_wraps, loop, readable_behind_writable),
    *(indirect_in_indirect, status_in_what_is_read, header_too_short, index_jumps),
]


def test_broken_queue_that_was_busy_uses_no_cpu(tmp_path: Path) -> None:
    """It polled for requests up to its end: that is over too."""
    with Disk(tmp_path, "null=1048576,poll=1000") as disk:
        for _ in range(300):
            assert disk.do(spec.BLK_T_IN, 0, 512) == OK
        index_jumps(disk)
        until(lambda: "queue 0 is broken by its driver" in disk.worker.log)
        before = disk.worker.cpu_seconds()
        time.sleep(0.5)
        assert disk.worker.cpu_seconds() - before < 0.05


@pytest.mark.parametrize("crime", CRIMES)
def test_crime_stops_the_device_alone_until_it_is_reset(
    disk: Disk, crime: Callable[[Disk], None]
) -> None:
    assert disk.write(0, pattern(1)) == OK
    disk.rings[0].posted = disk.rings[0].used_index
    crime(disk)
    assert disk.is_broken()
    until(lambda: "queue 0 is broken by its driver" in disk.worker.log)
    for _ in range(100):  # kicks of a broken queue are nobody's business
        os.eventfd_write(disk.rings[0].kick, 1)
    with Disk(disk.folder, "", of=disk, number=1) as neighbour:
        assert neighbour.write(0, pattern(2)) == OK
    # The reset: stop, begin anew with an empty ring.
    disk.frontend.get_vring_base(0)
    ring = disk.rings[0]
    for at, length in ((ring.avail, 6 + 2 * RING), (ring.used, 6 + 8 * RING)):
        disk.memory.map[at : at + length] = bytes(length)
    ring.posted = ring.seen = 0
    ring.free = list(range(RING))
    ring.chains.clear()
    ring.give_to(disk.frontend, 0)
    assert disk.write(8, pattern(3)) == OK
    assert disk.worker.log.count("\n") == 1


def test_broken_queue_uses_no_cpu_however_it_is_kicked(disk: Disk) -> None:
    loop(disk)
    assert disk.is_broken()
    disk.counter("sleeps")
    before = disk.worker.cpu_seconds()
    for _ in range(20000):
        os.eventfd_write(disk.rings[0].kick, 1)
    assert disk.worker.cpu_seconds() - before < 0.1


@pytest.mark.parametrize("seed", range(8))
def test_junk_in_the_ring_never_takes_the_worker_down(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    with Disk(tmp_path, on(image(tmp_path))) as disk:
        ring = disk.rings[0]
        for _ in range(40):
            for index in range(RING):
                describe(
                    disk,
                    index,
                    chance.choice([0, 0x10000, disk.memory.size - 100, chance.getrandbits(64)]),
                    chance.choice([1, 16, 512, 4096, chance.getrandbits(32)]),
                    chance.choice([0, 1, 2, 3, 3, 4, 5]),
                    chance.randrange(RING + 1),
                )
            offer(disk, chance.randrange(RING))
            if disk.is_broken(seconds=0.01):
                os.eventfd_read(ring.err)
                disk.frontend.get_vring_base(0)
                disk.memory.map[ring.used : ring.used + 4] = bytes(4)
                struct.pack_into("<H", disk.memory.map, ring.avail + 2, 0)
                ring.posted = 0
                ring.give_to(disk.frontend, 0)
        assert disk.worker.ask("status").startswith("ok 0=blk,connected")


def test_spoilt_log_breaks_the_queue_of_a_successor(tmp_path: Path) -> None:
    with Disk(tmp_path, on(image(tmp_path))) as disk:
        assert disk.write(0, pattern(1)) == OK
        disk.kill()
        assert disk.inflight
        os.pwrite(disk.inflight[0], b"\7\0", disk.inflight[2] + 8)
        disk.start()
        assert disk.is_broken()
        until(lambda: "in-flight log makes no sense" in disk.worker.log)


@pytest.mark.parametrize("seed", range(8))
def test_junk_in_the_log_never_takes_a_successor_down(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    with Disk(tmp_path, on(image(tmp_path))) as disk:
        for number in range(8):
            assert disk.write(8 * number, pattern(1)) == OK
        disk.kill()
        assert disk.inflight
        junk = bytearray(os.pread(disk.inflight[0], log_bytes(RING), disk.inflight[2]))
        for _ in range(100):
            junk[chance.randrange(10, len(junk))] = chance.randrange(256)
        os.pwrite(disk.inflight[0], junk, disk.inflight[2])
        disk.start()
        assert disk.worker.ask("status").startswith("ok 0=blk,connected")
        disk.frontend.get_vring_base(0)


def test_memory_is_not_taken_away_under_a_running_queue(disk: Disk) -> None:
    """A new memory table stops the queues for as long as it takes, and requests go on after it."""
    for turn in range(5):
        disk.post(spec.BLK_T_OUT, 8 * turn, pattern(turn))
        disk.frontend.set_mem_table(disk.memory.table())
        assert disk.status(disk.reap()) == OK


def test_queue_that_is_none_is_refused(disk: Disk) -> None:
    with pytest.raises(VhostUserError):
        disk.frontend.set_vring_num(9, RING)
