"""What a disk does for its guest, by a worker's process and a driver's ring."""

from __future__ import annotations

import os
import struct
import time
from typing import TYPE_CHECKING

import pytest

from kvmpv.virtio import spec
from tests.host.disks.disk import EVERYTHING, MIB, SECTOR, Disk, image, on, pattern
from tests.host.dom0.workers import Worker, option, rests
from tests.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

OK, IOERR, UNSUPP = spec.BLK_S_OK, spec.BLK_S_IOERR, spec.BLK_S_UNSUPP
IN, OUT, FLUSH = spec.BLK_T_IN, spec.BLK_T_OUT, spec.BLK_T_FLUSH
DISCARD, ZEROES, GET_ID = spec.BLK_T_DISCARD, spec.BLK_T_WRITE_ZEROES, spec.BLK_T_GET_ID
NO_EVENT_INDEX = EVERYTHING & ~spec.bit(spec.F_EVENT_IDX)


@pytest.mark.parametrize("cache", ["none", "writeback", "unsafe"])
@pytest.mark.parametrize("features", [EVERYTHING, NO_EVENT_INDEX])
def test_what_is_written_is_read_and_in_the_image(
    tmp_path: Path, cache: str, features: int
) -> None:
    path = image(tmp_path)
    with Disk(tmp_path, on(path, f"cache={cache}"), features=features) as disk:
        for number in range(20):
            assert disk.write(8 * number, pattern(number), align=4096) == OK
        assert disk.flush() == OK
        for number in range(20):
            assert disk.read(8 * number, 4096, align=4096) == pattern(number)
    assert path.read_bytes()[: 20 * 4096] == b"".join(pattern(number) for number in range(20))


def test_many_requests_at_once_each_get_their_own(tmp_path: Path) -> None:
    path = image(tmp_path, content=b"".join(pattern(n) for n in range(512)))
    with Disk(tmp_path, on(path, "cache=none", "queues=2"), queues=2) as disk:
        for turn in range(10):
            for slot in range(40):
                disk.post(IN, 8 * (turn * 40 + slot), 4096, queue=slot % 2, align=4096)
            for request in disk.reap_all(0) + disk.reap_all(1):
                assert disk.content(request) == pattern(request.sector // 8)
            disk.forget_buffers()
        assert disk.counter("reads") == 400


@pytest.mark.parametrize("cache", ["none", "writeback"])
@pytest.mark.parametrize("skew", [0, 1, 16, 511])
@pytest.mark.parametrize("pieces", [1, 3, 9])
def test_buffers_may_lie_anywhere(tmp_path: Path, cache: str, skew: int, pieces: int) -> None:
    data = os.urandom(300 * 1024)
    with Disk(tmp_path, on(image(tmp_path), f"cache={cache}")) as disk:
        assert disk.write(16, data, align=4096, skew=skew, pieces=pieces) == OK
        assert disk.read(16, len(data), align=4096, skew=skew, pieces=pieces) == data
        bounced = disk.counter("bounced")
    unaligned = skew % SECTOR or (len(data) + pieces - 1) // pieces % SECTOR
    assert bool(bounced) == (cache == "none" and bool(unaligned))


def test_more_unaligned_requests_than_bounce_buffers(tmp_path: Path) -> None:
    path = image(tmp_path, content=b"".join(pattern(n) for n in range(512)))
    with Disk(tmp_path, on(path, "cache=none")) as disk:
        for number in range(20):
            disk.post(IN, 8 * number, 4096, skew=3)
        requests = disk.reap_all()
        assert all(disk.content(one) == pattern(one.sector // 8) for one in requests)


def test_null_device_answers(tmp_path: Path) -> None:
    with Disk(tmp_path, f"null={MIB}") as disk:
        assert disk.config[0] == MIB // SECTOR
        assert disk.write(0, pattern(1)) == OK
        assert disk.do(IN, 0, 4096) == OK
        assert disk.flush() == OK


def test_serial_is_told(tmp_path: Path) -> None:
    with Disk(tmp_path, on(image(tmp_path), "serial=of-20-bytes-at-most-and")) as disk:
        request = disk.post(GET_ID, 0, 20)
        disk.reap()
        assert disk.content(request) == b"of-20-bytes-at-most-"


@pytest.mark.parametrize(
    ("kind", "sector", "data", "status"),
    [
        (IN, 8192, 512, IOERR),
        (IN, 8191, 1024, IOERR),
        (IN, (1 << 64) - 1, 512, IOERR),
        (IN, 1 << 55, 512, IOERR),
        (IN, 0, 511, IOERR),
        (IN, 0, 0, OK),
        (OUT, 8192, bytes(512), IOERR),
        (OUT, (1 << 64) - 1, bytes(1024), IOERR),
        (OUT, 0, bytes(100), IOERR),
        (GET_ID, 0, 19, IOERR),
        (DISCARD, 0, struct.pack("<QII", 8192, 1, 0), IOERR),
        (DISCARD, 0, struct.pack("<QII", (1 << 64) - 1, 2, 0), IOERR),
        (DISCARD, 0, struct.pack("<QII", 0, 1, 1), UNSUPP),
        (DISCARD, 0, bytes(15), IOERR),
        (DISCARD, 0, bytes(32), IOERR),
        (ZEROES, 0, struct.pack("<QII", 0, (1 << 21) + 1, 0), IOERR),
        (ZEROES, 0, struct.pack("<QII", 0, 1, 2), UNSUPP),
        (99, 0, bytes(8), UNSUPP),
        (14, 0, bytes(8), UNSUPP),
    ],
)
def test_request_that_cannot_be_is_answered(
    tmp_path: Path, kind: int, sector: int, data: bytes | int, status: int
) -> None:
    with Disk(tmp_path, on(image(tmp_path))) as disk:
        assert disk.do(kind, sector, data) == status
        assert disk.flush() == OK  # and the device goes on


def test_read_only_disk_refuses_writes(tmp_path: Path) -> None:
    path = image(tmp_path, content=pattern(7))
    with Disk(tmp_path, on(path, "readonly=1")) as disk:
        assert disk.accepted & spec.bit(spec.BLK_F_RO)
        assert disk.write(0, pattern(1)) == IOERR
        assert disk.read(0, 4096) == pattern(7)
        assert disk.flush() == OK


@pytest.mark.parametrize("cache", ["none", "writeback"])
def test_discard_frees_and_zeroes_zero(tmp_path: Path, cache: str) -> None:
    path = image(tmp_path, content=os.urandom(MIB))
    with Disk(tmp_path, on(path, f"cache={cache}")) as disk:
        blocks = path.stat().st_blocks
        assert disk.range(DISCARD, 0, 512) == OK
        assert path.stat().st_blocks <= blocks - 256
        assert disk.range(ZEROES, 1024, 9) == OK
        assert disk.range(ZEROES, 1040, 8, 1) == OK
        content = path.read_bytes()
        assert content[1024 * SECTOR : 1033 * SECTOR] == bytes(9 * SECTOR)
        assert content[1040 * SECTOR : 1048 * SECTOR] == bytes(8 * SECTOR)
        assert content[1033 * SECTOR : 1040 * SECTOR] != bytes(7 * SECTOR)
        assert path.stat().st_size == 4 * MIB


def test_zeroes_are_written_where_the_file_system_cannot(tmp_path: Path) -> None:
    shared = f"/dev/shm/kvmpv-{os.getpid()}.img"
    with open(shared, "wb") as file:
        file.write(os.urandom(MIB))
    try:
        with Disk(tmp_path, option("path", shared)) as disk:
            assert disk.range(ZEROES, 3, 1000) == OK  # tmpfs has no FALLOC_FL_ZERO_RANGE
            assert disk.read(3, 1000 * SECTOR) == bytes(1000 * SECTOR)
            assert disk.read(1003, SECTOR) != bytes(SECTOR)
    finally:
        os.unlink(shared)


def test_discard_switched_off_is_not_offered(tmp_path: Path) -> None:
    with Disk(tmp_path, on(image(tmp_path), "discard=off")) as disk:
        assert not disk.accepted & spec.mask(spec.BLK_F_DISCARD, spec.BLK_F_WRITE_ZEROES)
        assert disk.range(DISCARD, 0, 8) == UNSUPP


def test_config_tells_size_blocks_and_queues(tmp_path: Path) -> None:
    options = on(image(tmp_path), "logical=512", "physical=4096", "queues=4")
    with Disk(tmp_path, options) as disk:
        config = disk.config
        assert (config[0], config[6], config[7], config[13]) == (4 * MIB // SECTOR, 512, 3, 4)


def test_writes_go_through_while_the_driver_says_so(tmp_path: Path) -> None:
    with Disk(tmp_path, on(image(tmp_path))) as disk:
        assert disk.config[11] == 1
        disk.frontend.set_config(spec.BLK_CONFIG_WCE_OFFSET, b"\0")
        assert disk.config[11] == 0
        assert disk.write(0, pattern(3)) == OK
        assert disk.range(ZEROES, 8, 8) == OK


def test_truncated_image_is_an_error_of_that_request(tmp_path: Path) -> None:
    path = image(tmp_path, content=pattern(1, MIB))
    with Disk(tmp_path, on(path)) as disk:
        os.truncate(path, 64 * 1024)
        for _ in range(3):
            assert disk.do(IN, 1024, 4096) == IOERR
        assert disk.read(0, 4096) == pattern(1)
        assert disk.counter("errors") == 3
        until(lambda: disk.worker.log)
        assert disk.worker.log.count("read at sector 1024") == 1
        assert disk.worker.log.count("\n") == 1


def test_full_file_system_is_an_error_of_that_request(tmp_path: Path, small_fs: Path) -> None:
    path = small_fs / "disk.img"
    with open(path, "wb") as file:
        file.truncate(64 * MIB)
    with Disk(tmp_path, on(path)) as disk:
        disk.memory.next = 0x100000
        statuses = set()
        for turn in range(24):
            statuses.add(disk.write(2048 * turn, pattern(turn, MIB)))
            disk.memory.next = 0x100000
        assert statuses == {OK, IOERR}
        assert disk.read(0, 4096) == pattern(0)
        assert disk.worker.log.count("No space left") == 1


def test_grown_image_is_told_to_the_guest(tmp_path: Path) -> None:
    path = image(tmp_path)
    with Disk(tmp_path, on(path)) as disk:
        assert disk.do(IN, 8192, 512) == IOERR
        os.truncate(path, 8 * MIB)
        assert disk.worker.ask("resize 0").startswith("ok")
        assert disk.config[0] == 8 * MIB // SECTOR
        assert disk.read(8192, 512) == bytes(512)


def test_requests_of_a_broken_form_break_the_queue_alone(tmp_path: Path) -> None:
    with Disk(tmp_path, on(image(tmp_path), "queues=2"), queues=2) as disk:
        at = disk.memory.take(64)
        disk.rings[0].post((at, 8, False))
        assert disk.is_broken(0)
        assert disk.write(0, pattern(1), queue=1) == OK
        until(lambda: "queue 0 is broken by its driver: chain is no request" in disk.worker.log)


def test_limit_of_operations_holds(tmp_path: Path) -> None:
    options = on(image(tmp_path), "iops=200", "iops_burst=10")
    with Disk(tmp_path, options) as disk:
        began = time.monotonic()
        for _ in range(60):
            disk.do(IN, 0, 512)
        took = time.monotonic() - began
        assert 0.2 < took < 2  # 50 of them at 200 a second
        assert disk.counter("throttled")
        disk.worker.ask("limit 0 iops=100000")
        began = time.monotonic()
        for _ in range(60):
            disk.do(IN, 0, 512)
        assert time.monotonic() - began < took


def test_limit_of_bytes_is_shared_by_a_group(tmp_path: Path) -> None:
    limits = f"null={MIB},bps={MIB},bps_burst=4096,group=both"
    with (
        Disk(tmp_path, limits, neighbours=[limits]) as one,
        Disk(tmp_path, "", of=one, number=1) as other,
    ):
        began = time.monotonic()
        for _ in range(4):
            for disk in (one, other):
                disk.post(IN, 0, 64 * 1024)
        for disk in (one, other):
            disk.reap_all()
        took = time.monotonic() - began
        assert took > 0.4  # 512 KiB at 1 MiB a second, less what may be owed


def test_slow_driver_of_a_fast_disk_has_its_answers_gathered(tmp_path: Path) -> None:
    """Python takes longer for a request than the page cache does: it is tried, and none is lost."""
    path = image(tmp_path, content=b"".join(pattern(n) for n in range(64)))
    with Disk(tmp_path, on(path)) as disk:

        def post() -> None:
            for number in range(20):
                disk.post(IN, 8 * number, 4096, align=4096, kick=number % 4 == 3)

        def lingers() -> bool:
            post()
            for request in disk.reap_all():
                assert disk.status(request) == OK
                assert disk.content(request) == pattern(request.sector // 8)
            disk.forget_buffers()
            return disk.counter("lingers") > 0

        until(lingers, pause=0)  # a pause begins it anew
        assert disk.write(0, pattern(99)) == OK  # the only one that is out
        post()
        disk.restart()  # signals that were still to come are the successor's now
        assert len(disk.reap_all()) == 20


def test_idle_disk_uses_no_cpu(tmp_path: Path) -> None:
    with Disk(tmp_path, on(image(tmp_path), "queues=4"), queues=4) as disk:
        for _ in range(200):
            disk.do(IN, 0, 512)
        until(lambda: rests(disk.worker.process.pid))
        sleeps = disk.counter("sleeps")
        before = disk.worker.cpu_seconds()
        time.sleep(0.5)
        assert disk.counter("sleeps") == sleeps
        assert disk.worker.cpu_seconds() - before < 0.05


def test_throw_away_disk_leaves_the_image_as_it_was(tmp_path: Path) -> None:
    content = os.urandom(MIB)
    path = image(tmp_path, content=content)
    with Disk(tmp_path, on(path, "snapshot=1")) as disk:
        assert disk.write(3, pattern(9, 5 * SECTOR)) == OK
        assert disk.range(ZEROES, 100, 3) == OK
        wanted = bytearray(content[: 200 * SECTOR])
        wanted[3 * SECTOR : 8 * SECTOR] = pattern(9, 5 * SECTOR)
        wanted[100 * SECTOR : 103 * SECTOR] = bytes(3 * SECTOR)
        assert disk.read(0, 200 * SECTOR) == wanted
        assert disk.read(0, 200 * SECTOR, pieces=7, skew=5) == wanted
    assert path.read_bytes()[:MIB] == content


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("path=/nonexistent/disk.img", "No such file"),
        ("path=/", "Is a directory"),
        ("path=/dev/null", "neither a file nor a block device"),
        ("", "needs an image"),
        ("null=4096,cache=soon", "cache='soon'"),
        ("null=4096,logical=1000", "no block size"),
        ("null=4096,queues=17", "queues"),
        ("null=4096,iops=few", "iops"),
    ],
)
def test_bad_options_are_refused(tmp_path: Path, options: str, says: str) -> None:
    with Worker(tmp_path, f"blk,{options}".rstrip(",")) as worker:
        assert worker.ready.startswith("error 0 ")
        assert says in worker.ready
        assert worker.wait() == 2


def test_odd_sized_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd"
    path.write_bytes(bytes(1000))
    with Worker(tmp_path, f"blk,{option('path', path)}") as worker:
        assert "no multiple of 512" in worker.ready


def test_image_of_another_domain_is_refused(tmp_path: Path) -> None:
    path = image(tmp_path)
    (tmp_path / "other").mkdir()
    with Disk(tmp_path, on(path)), Worker(tmp_path / "other", f"blk,{on(path)}") as second:
        assert "is in use by domain test" in second.ready


def test_image_may_be_shared_by_readers(tmp_path: Path) -> None:
    path = image(tmp_path, content=pattern(5))
    (tmp_path / "other").mkdir()
    options = on(path, "readonly=1")
    with Disk(tmp_path, options) as one, Disk(tmp_path / "other", options) as two:
        assert one.read(0, 4096) == two.read(0, 4096) == pattern(5)
