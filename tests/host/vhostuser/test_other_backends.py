"""Our front end against other people's back ends: QEMU's storage daemon and virtiofsd."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

from kvmpv.vhostuser import message
from kvmpv.vhostuser.frontend import open_connection
from tests.unit.vhostuser.driver import Driver, Memory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kvmpv.vhostuser.frontend import Frontend

MIB = 1 << 20
SECTOR = 512
BLK_HEAD = struct.Struct("<IIQ")  # virtio 1.2, 5.2.6
BLK_IN, BLK_OUT, BLK_FLUSH, BLK_GET_ID = 0, 1, 4, 8
F_FLUSH = 1 << 9


class Disk:
    """A driver of a disk: one request at a time."""

    def __init__(self, frontend: Frontend, memory: Memory | None = None) -> None:
        self.driver = Driver(frontend, [64], features=1 << 32 | F_FLUSH, memory=memory)
        self.driver.start()
        self.ring = self.driver.rings[0]

    def request(self, kind: int, sector: int = 0, data: bytes = b"", reads: int = 0) -> bytes:
        memory = self.driver.memory
        before = memory.next
        pieces = [(memory.put(BLK_HEAD.pack(kind, 0, sector)), BLK_HEAD.size, False)]
        if data:
            pieces.append((memory.put(data), len(data), False))
        target = memory.take(max(reads, 1))
        if reads:
            pieces.append((target, reads, True))
        status = memory.put(b"\xff")
        pieces.append((status, 1, True))
        head = self.ring.post(*pieces)
        assert self.ring.wait() == (head, reads + 1)
        assert memory.map[status] == 0
        memory.next = before
        return memory.map[target : target + reads]


def listening(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path))
    made.listen()
    return made


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    image, path = tmp_path / "image", tmp_path / "socket"
    image.write_bytes(os.urandom(MIB))
    listener = listening(path)
    fd = listener.fileno()
    process = subprocess.Popen(
        [
            *("qemu-storage-daemon", "--blockdev", f"file,node-name=d,filename={image}"),
            *("--export", "vhost-user-blk,id=e,node-name=d,writable=on,num-queues=2"
              f",addr.type=fd,addr.str={fd}"),
        ],
        pass_fds=[fd],
    )  # fmt: skip
    listener.close()
    yield path, image
    process.terminate()
    process.wait(10)


def test_the_storage_daemon_reads_and_writes(daemon: tuple[Path, Path]) -> None:
    path, image = daemon
    disk = Disk(open_connection(str(path), 10))
    frontend = disk.driver.frontend
    assert frontend.get_queue_num() == 2
    assert struct.unpack("<Q", frontend.get_config(0, 8)) == (MIB // SECTOR,)
    content = image.read_bytes()
    assert disk.request(BLK_IN, 3, reads=8192) == content[3 * SECTOR : 3 * SECTOR + 8192]
    new = os.urandom(65536)
    disk.request(BLK_OUT, 64, new)
    assert disk.request(BLK_IN, 64, reads=65536) == new
    disk.request(BLK_FLUSH)
    assert image.read_bytes()[64 * SECTOR : 64 * SECTOR + 65536] == new
    assert frontend.get_vring_base(0) == disk.ring.posted
    disk.driver.close()


def test_the_storage_daemon_is_found_again(daemon: tuple[Path, Path]) -> None:
    path, image = daemon
    content = image.read_bytes()
    for sector in (0, 100):
        disk = Disk(open_connection(str(path), 10))
        at = sector * SECTOR
        assert disk.request(BLK_IN, sector, reads=4096) == content[at : at + 4096]
        disk.driver.close()


def test_virtiofsd_opens_a_session(tmp_path: Path) -> None:
    folder, path = tmp_path / "folder", tmp_path / "socket"
    folder.mkdir()
    listener = listening(path)
    fd = listener.fileno()
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(
            ["/usr/lib/qemu/virtiofsd", f"--fd={fd}", "-o", f"source={folder}"],
            pass_fds=[fd],
            stderr=log,
        )
    listener.close()
    try:
        driver = Driver(open_connection(str(path), 10), [16, 64])
        assert driver.frontend.protocol_features & message.PF_REPLY_ACK
        driver.start()
        ring, memory = driver.rings[1], driver.memory
        # FUSE_INIT of the kernel's include/uapi/linux/fuse.h, version 7.31
        asked = struct.pack("<IIQQ4I4I", 56, 26, 77, 0, *[0] * 4, 7, 31, 0, 0)
        answer = memory.take(256)
        ring.post((memory.put(asked), len(asked), False), (answer, 256, True))
        ring.wait(10)
        length, error, unique = struct.unpack_from("<IiQ", memory.map, answer)
        assert (length > 16, error, unique) == (True, 0, 77)
        assert struct.unpack_from("<I", memory.map, answer + 16) == (7,)
        driver.close()
        process.wait(10)
    finally:
        process.kill()
        process.wait()
