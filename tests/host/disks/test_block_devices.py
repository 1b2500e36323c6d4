"""Disks that are block devices of the host; needs root and loop devices."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from kvmpv.virtio import spec
from tests.host.disks.disk import MIB, SECTOR, Disk, image, on, pattern
from tests.host.dom0.workers import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

OK, IOERR = spec.BLK_S_OK, spec.BLK_S_IOERR


@pytest.fixture
def loop() -> Iterator[Callable[[Path], Path]]:
    """Return a function that makes a block device of a file."""
    from pathlib import Path as Real

    made: list[str] = []

    def make(path: Path) -> Path:
        argv = ["losetup", "--find", "--show", str(path)]
        made.append(subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip())
        return Real(made[-1])

    yield make
    for name in made:
        subprocess.run(["losetup", "--detach", name], check=True)


@pytest.mark.parametrize("cache", ["none", "writeback"])
def test_block_device_is_a_disk(tmp_path: Path, loop: Callable[[Path], Path], cache: str) -> None:
    path = image(tmp_path)
    with Disk(tmp_path, on(loop(path), f"cache={cache}")) as disk:
        assert disk.config[0] == 4 * MIB // SECTOR
        assert disk.write(8, pattern(5), align=4096) == OK
        assert disk.write(17, pattern(6, SECTOR)) == OK
        assert disk.range(spec.BLK_T_WRITE_ZEROES, 9, 1) == OK
        assert disk.range(spec.BLK_T_DISCARD, 64, 64) == OK
        assert disk.flush() == OK
        assert disk.read(8, SECTOR) == pattern(5, SECTOR)
        assert disk.read(9, SECTOR) == bytes(SECTOR)
        disk.restart()
        assert disk.read(17, SECTOR) == pattern(6, SECTOR)
    assert path.read_bytes()[8 * SECTOR : 9 * SECTOR] == pattern(5, SECTOR)


def test_growth_of_a_block_device_is_told(tmp_path: Path, loop: Callable[[Path], Path]) -> None:
    path = image(tmp_path)
    device = loop(path)
    with Disk(tmp_path, on(device)) as disk:
        os.truncate(path, 8 * MIB)
        subprocess.run(["losetup", "--set-capacity", device], check=True)
        assert disk.worker.ask("resize 0").startswith("ok")
        assert disk.config[0] == 8 * MIB // SECTOR
        assert disk.write(8192, pattern(1)) == OK


def test_what_the_host_has_mounted_is_refused(tmp_path: Path, loop: Callable[[Path], Path]) -> None:
    device = loop(image(tmp_path, 16 * MIB))
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    folder = tmp_path / "mounted"
    folder.mkdir()
    subprocess.run(["mount", device, folder], check=True)
    try:
        with Worker(tmp_path, f"blk,{on(device)}") as worker:
            assert "is in use by the host" in worker.ready
        with Worker(tmp_path, f"blk,{on(device, 'readonly=1')}") as worker:
            assert worker.ready == "ok"
    finally:
        subprocess.run(["umount", folder], check=True)


def test_host_cannot_mount_what_a_guest_writes_to(
    tmp_path: Path, loop: Callable[[Path], Path]
) -> None:
    device = loop(image(tmp_path, 16 * MIB))
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    folder = tmp_path / "mounted"
    folder.mkdir()
    with Disk(tmp_path, on(device)):
        tried = subprocess.run(["mount", device, folder], capture_output=True, check=False)
    assert tried.returncode != 0


def test_failing_device_is_an_error_of_that_request(
    tmp_path: Path, loop: Callable[[Path], Path], small_fs: Path
) -> None:
    """The device has 64 MiB, and the file below it room for 16."""
    path = small_fs / "disk.img"
    with open(path, "wb") as file:
        file.truncate(64 * MIB)
    device = loop(path)
    with Disk(tmp_path, on(device, "cache=none")) as disk:
        statuses = []
        for turn in range(24):
            disk.forget_buffers()
            statuses.append(disk.write(2048 * turn, pattern(turn, MIB), align=4096))
        assert statuses[0] == OK
        assert statuses[-3:] == [IOERR] * 3
        assert disk.read(0, 4096, align=4096) == pattern(0)
        assert disk.worker.log.count("write at sector") == 1
