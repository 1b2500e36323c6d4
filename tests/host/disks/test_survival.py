"""A worker dies, and its guest does not notice: replay, the fence, and what a flush promised."""

from __future__ import annotations

import mmap
import os
import random
import struct
import time
from typing import TYPE_CHECKING

from kvmpv.dataplane.ring import log_bytes
from kvmpv.virtio import spec
from tests.host.disks.disk import MIB, SECTOR, Disk, image, on, pattern
from tests.host.disks.slow import slow_writes
from tests.unit.vhostuser.driver import readable
from tests.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.host.disks.disk import Request

OK, IOERR = spec.BLK_S_OK, spec.BLK_S_IOERR
IN, OUT, FLUSH = spec.BLK_T_IN, spec.BLK_T_OUT, spec.BLK_T_FLUSH
BLOCK = 4096
KPF_DIRTY, KPF_WRITEBACK = 1 << 4, 1 << 8


def in_flight(disk: Disk) -> int:
    """Count what the in-flight log has of queue 0."""
    assert disk.inflight
    log = os.pread(disk.inflight[0], log_bytes(disk.size), disk.inflight[2])
    return sum(log[16 + 16 * head] for head in range(disk.size))


def test_requests_in_flight_are_replayed_once(tmp_path: Path) -> None:
    """All that was taken comes back, from one worker or from another, and none of it twice."""
    with Disk(tmp_path, on(image(tmp_path), "iops=50", "iops_burst=1")) as disk:
        for number in range(20):
            disk.post(OUT, 8 * number, pattern(number + 1))
        done: list[Request] = []
        for _ in range(4):
            until(lambda: in_flight(disk) > 0)
            done += [disk.reap() for _ in range(2)]
            disk.restart()
        disk.worker.ask("limit 0 iops=0")
        done += disk.reap_all()
        assert [disk.status(one) for one in done] == [OK] * 20
        assert len({one.sector for one in done}) == 20
        assert disk.rings[0].used_index == 20
        for number in range(20):
            assert disk.read(8 * number, BLOCK) == pattern(number + 1)
        assert in_flight(disk) == 0


def test_successor_signals_what_its_predecessor_may_not_have(tmp_path: Path) -> None:
    """The answer is there, and its signal is not: nothing else would make the driver look."""
    with Disk(tmp_path, on(image(tmp_path))) as disk:
        ring = disk.rings[0]
        disk.post(IN, 0, SECTOR)
        assert readable(ring.call, 10)
        disk.kill()
        os.eventfd_read(ring.call)  # as if it had died before that
        disk.start()
        assert readable(ring.call, 10)


def test_reads_in_flight_are_replayed_in_their_order(tmp_path: Path) -> None:
    path = image(tmp_path, content=b"".join(pattern(n) for n in range(64)))
    with Disk(tmp_path, on(path, "iops=1", "iops_burst=1")) as disk:
        for number in (5, 3, 9, 1):
            disk.post(IN, 8 * number, BLOCK)
        assert disk.reap().sector == 40
        until(lambda: in_flight(disk) > 0)
        disk.kill()
        disk.options = on(path)
        disk.start()
        got = disk.reap_all()
        assert {one.sector // 8 for one in got} == {3, 9, 1}
        assert all(disk.content(one) == pattern(one.sector // 8) for one in got)
        assert disk.counter("replayed") >= 1


def test_worker_killed_at_any_moment_loses_nothing(tmp_path: Path) -> None:
    """Writes and reads of many blocks, and a SIGKILL every few milliseconds."""
    chance = random.Random(4)
    blocks = 256
    with Disk(tmp_path, on(image(tmp_path), "cache=none"), memory=64 * MIB) as disk:
        holds = [bytes(BLOCK)] * blocks
        for turn in range(12):
            disk.forget_buffers()
            wanted: dict[int, bytes] = {}
            for block in chance.sample(range(blocks), 20):
                if chance.random() < 0.7:
                    wanted[block] = pattern(1000 * turn + block)
                    disk.post(OUT, 8 * block, wanted[block], align=BLOCK)
                else:
                    disk.post(IN, 8 * block, BLOCK, align=BLOCK)
            time.sleep(chance.random() * 0.004)
            disk.restart()
            for one in disk.reap_all():
                assert disk.status(one) == OK
                if one.kind == IN:
                    assert disk.content(one) == holds[one.sector // 8]
            for block, data in wanted.items():
                holds[block] = data
        for block in range(blocks):
            disk.forget_buffers()
            assert disk.read(8 * block, BLOCK) == holds[block], block


def test_successor_waits_for_what_its_predecessor_left_in_the_kernel(tmp_path: Path) -> None:
    """Newer data, written after the replay, is not overwritten by the dead worker's requests.

    Those are on their way for two seconds. Without the fence (Image.lock) this fails.
    """
    blocks = 32
    path = image(tmp_path, content=bytes(MIB))  # allocated, so that no write waits for the journal
    os.sync()
    with Disk(tmp_path, on(path, "cache=none"), size=128) as disk:
        with slow_writes(disk.worker.process.pid, path, blocks * BLOCK // 2):
            for block in range(blocks):
                disk.post(OUT, 8 * block, pattern(1), align=BLOCK)
            until(lambda: disk.counter("writes") == blocks)
            began = time.monotonic()
            disk.restart()
            for one in disk.reap_all():
                assert disk.status(one) == OK
            for block in range(blocks):
                assert disk.write(8 * block, pattern(2), align=BLOCK) == OK
            assert disk.flush() == OK
            written = time.monotonic() - began
            # Longer than the dead worker's requests could take.
            time.sleep(max(0.0, 3.0 - written))
            content = [disk.read(8 * block, BLOCK, align=BLOCK) for block in range(blocks)]
        assert [data == pattern(2) for data in content] == [True] * blocks
        assert disk.worker.log.count("waits for the last requests of its predecessor") == 1


def dirty_pages(path: Path, length: int) -> int:
    """Count the pages of a file that are in memory only, or on their way to the disk."""
    found = 0
    with open(path, "rb") as file, mmap.mmap(file.fileno(), length, prot=mmap.PROT_READ) as view:
        with open("/proc/self/maps") as maps:
            start = next(int(line.split("-")[0], 16) for line in maps if str(path) in line)
        with open("/proc/self/pagemap", "rb") as pages, open("/proc/kpageflags", "rb") as flags:
            for offset in range(0, length, mmap.PAGESIZE):
                _ = view[offset]
                entry = os.pread(pages.fileno(), 8, (start + offset) // mmap.PAGESIZE * 8)
                frame = struct.unpack("<Q", entry)[0] & (1 << 55) - 1
                state = struct.unpack("<Q", os.pread(flags.fileno(), 8, frame * 8))[0]
                found += bool(state & (KPF_DIRTY | KPF_WRITEBACK))
    return found


def test_what_was_flushed_is_on_the_disk_whenever_the_worker_dies(tmp_path: Path) -> None:
    """After each acknowledged flush no page of the image is dirty, and later deaths change nothing.

    ``flushed`` is the log: what each block held at the last flush that was acknowledged.
    """
    chance = random.Random(7)
    blocks, area = 64, 64 * BLOCK
    path = image(tmp_path, content=bytes(area))
    os.sync()
    assert dirty_pages(path, area) == 0
    flushed = [bytes(BLOCK)] * blocks
    with Disk(tmp_path, on(path, "cache=writeback")) as disk:
        for turn in range(1, 16):
            disk.forget_buffers()
            written = {
                block: pattern(turn * blocks + block) for block in chance.sample(range(blocks), 8)
            }
            for block, data in written.items():
                assert disk.write(8 * block, data) == OK
            if turn == 1:
                assert dirty_pages(path, area) > 0  # what is looked at does tell
            if turn % 3:
                assert disk.flush() == OK
                assert dirty_pages(path, area) == 0
                for block, data in written.items():
                    flushed[block] = data
            else:
                disk.post(FLUSH)
                time.sleep(chance.random() * 0.003)
                disk.restart()
                for one in disk.reap_all():
                    assert disk.status(one) == OK
                for block, data in written.items():
                    flushed[block] = data
                assert dirty_pages(path, area) == 0
            content = path.read_bytes()
            for block in range(blocks):
                assert content[block * BLOCK : (block + 1) * BLOCK] == flushed[block]


def test_throw_away_disk_keeps_what_was_written_over_a_death(tmp_path: Path) -> None:
    path = image(tmp_path, content=pattern(1, MIB))
    with open(tmp_path / "overlay", "w+b") as overlay:
        os.unlink(tmp_path / "overlay")
        fd = overlay.fileno()
        with Disk(tmp_path, on(path, "snapshot=1", f"overlayfd={fd}"), fds=[fd]) as disk:
            assert disk.write(9, pattern(2)) == OK
            disk.restart()
            assert disk.read(8, SECTOR) == pattern(1, SECTOR)
            assert disk.read(9, BLOCK) == pattern(2)
        assert path.read_bytes()[: 32 * SECTOR] == pattern(1, 32 * SECTOR)


def test_full_disk_below_a_throw_away_disk_costs_that_write(tmp_path: Path, small_fs: Path) -> None:
    """Its data finds the last room there is, and the page with its bit none."""
    overlay = os.open(small_fs, os.O_RDWR | os.O_TMPFILE)
    options = on(image(tmp_path, 4096 * MIB), "snapshot=1", f"overlayfd={overlay}")
    with Disk(tmp_path, options, fds=[overlay]) as disk, (small_fs / "other").open("wb") as other:
        assert disk.write(0, pattern(1)) == OK
        room = os.statvfs(small_fs)
        os.posix_fallocate(other.fileno(), 0, (room.f_bfree - 1) * room.f_bsize)
        assert disk.write(4 * MIB, pattern(2)) == OK
        assert disk.write(5 * MIB, pattern(3)) == IOERR
        assert disk.read(4 * MIB, BLOCK) == pattern(2)
        assert disk.worker.log.count("No space left on device") == 1
    os.close(overlay)


def test_queue_stops_with_nothing_in_flight(tmp_path: Path) -> None:
    with Disk(tmp_path, on(image(tmp_path), "iops=10", "iops_burst=1")) as disk:
        for number in range(4):
            disk.post(OUT, 8 * number, pattern(number))
        until(lambda: in_flight(disk) > 0)
        base = disk.frontend.get_vring_base(0)
        assert base == disk.rings[0].used_index  # all that was taken has come back
        assert in_flight(disk) == 0
        disk.rings[0].give_to(disk.frontend, 0, base)
        assert [disk.status(one) for one in disk.reap_all()] == [OK] * 4


def test_queue_that_is_disabled_takes_nothing(tmp_path: Path) -> None:
    with Disk(tmp_path, on(image(tmp_path))) as disk:
        disk.frontend.set_vring_enable(0, False)
        disk.post(OUT, 0, pattern(1))
        time.sleep(0.05)
        assert disk.rings[0].used_index == 0
        disk.frontend.set_vring_enable(0, True)
        assert disk.status(disk.reap()) == OK
