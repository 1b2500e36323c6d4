"""``kvmpv backend`` for front ends that are not as careful as ours."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvmpv.errors import VhostUserError
from kvmpv.vhostuser.frontend import open_connection
from tests.host.vhostuser.test_other_backends import BLK_IN, BLK_OUT, Disk
from tests.unit.vhostuser.driver import Memory

if TYPE_CHECKING:
    from collections.abc import Iterator

KVMPV = str(Path(__file__).parents[3] / "build/bin/kvmpv")
MIB = 1 << 20


@contextmanager
def served(folder: Path, *arguments: str) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    path = folder / "socket"
    environment = {**os.environ, "KVMPV_RUN_DIR": str(folder / "run")}
    argv = [KVMPV, "backend", *arguments, "--socket", str(path)]
    process = subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("kvmpv: serving ")
        yield path, process
    finally:
        process.terminate()
        process.communicate(timeout=20)


def test_memory_that_its_owner_could_truncate_is_taken(tmp_path: Path) -> None:
    """libblkio, DPDK and QEMU's memory-backend-file seal nothing."""
    image = tmp_path / "image"
    image.write_bytes(bytes(MIB))
    with served(tmp_path, "block", str(image), "--unsealed") as (path, _):
        disk = Disk(open_connection(str(path), 10), Memory(seals=0))
        disk.request(BLK_OUT, 8, b"unsealed" * 64)
        assert disk.request(BLK_IN, 8, reads=512) == b"unsealed" * 64
        disk.driver.close()


def test_memory_that_its_owner_could_truncate_is_refused_unasked_for(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(MIB))
    with served(tmp_path, "block", str(image)) as (path, process):
        frontend = open_connection(str(path), 10)
        with pytest.raises(VhostUserError):
            Disk(frontend, Memory(seals=0))
        frontend.close()
        assert process.stderr is not None
        assert "--unsealed" in process.stderr.readline()


def test_one_that_truncates_its_memory_harms_no_one_else(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"content!" * 64 + bytes(MIB))
    with served(tmp_path, "block", str(image), "--unsealed") as (path, process):
        disk = Disk(open_connection(str(path), 10), Memory(seals=0))
        os.ftruncate(disk.driver.memory.fd, 0)
        os.eventfd_write(disk.ring.kick, 1)
        assert process.stderr is not None
        assert "is started again" in process.stderr.readline()
        with pytest.raises(VhostUserError):
            disk.driver.frontend.get_features()
        disk.driver.close()
        disk = Disk(open_connection(str(path), 10))
        assert disk.request(BLK_IN, 0, reads=512) == b"content!" * 64
        disk.driver.close()
