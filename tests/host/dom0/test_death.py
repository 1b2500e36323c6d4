"""A worker is killed while requests are in flight: its successor ends them, each exactly once."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

from tests.host.dom0 import disk
from tests.host.dom0.workers import Worker, option

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
BLOCK = 4096
PER_BLOCK = BLOCK // disk.SECTOR


def test_requests_in_flight_are_ended_by_the_successor(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(MIB))
    orders = f"blk,{option('path', image)}"
    # The limit keeps all but the first few in flight, where the kill finds them.
    with Worker(tmp_path, f"{orders},iops=10,iops_burst=2") as first:
        drive = disk.Disk(first.frontend())
        blocks = [bytes([number + 1]) * BLOCK for number in range(16)]
        heads = {
            drive.submit(disk.OUT, number * PER_BLOCK, data) for number, data in enumerate(blocks)
        }
        early = [drive.finish() for _ in range(2)]
        first.process.kill()
        first.wait()
        drive.frontend.close()
    with Worker(tmp_path, orders, restart=1) as second:
        drive.connect(second.frontend(), drive.ring.used_index)
        late = [drive.finish() for _ in range(14)]
        assert {head for head, _, _ in early + late} == heads
        assert {status for _, status, _ in early + late} == {0}
        assert image.read_bytes()[: 16 * BLOCK] == b"".join(blocks)
        assert drive.read(5 * PER_BLOCK, BLOCK) == blocks[5]
        assert drive.ring.used_index == 17
        drive.close()


def test_many_deaths_lose_nothing(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(4 * MIB))
    orders = f"blk,{option('path', image)}"
    chance = random.Random(4)
    wanted = bytearray(4 * MIB)
    drive: disk.Disk | None = None
    for life in range(5):
        with Worker(tmp_path, orders, restart=int(life > 0)) as worker:
            if drive is None:
                drive = disk.Disk(worker.frontend())
            else:
                drive.connect(worker.frontend(), drive.ring.used_index)
            for _ in range(chance.randrange(200)):
                write_somewhere(drive, wanted, chance)
            worker.process.kill()
            worker.wait()
            drive.frontend.close()
    assert drive is not None
    with Worker(tmp_path, orders, restart=1) as worker:
        drive.connect(worker.frontend(), drive.ring.used_index)
        while drive.requests:
            assert drive.finish()[1] == 0
        assert image.read_bytes() == bytes(wanted)
        drive.close()


def write_somewhere(drive: disk.Disk, wanted: bytearray, chance: random.Random) -> None:
    """Write a block that no request on its way writes, of which there are at most 12."""
    if len(drive.requests) == 12:
        assert drive.finish()[1] == 0
    number, data = chance.randrange(1024), os.urandom(BLOCK)
    if number * PER_BLOCK in {request.sector for request in drive.requests.values()}:
        return
    wanted[number * BLOCK : (number + 1) * BLOCK] = data
    drive.submit(disk.OUT, number * PER_BLOCK, data)
