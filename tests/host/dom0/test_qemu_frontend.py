"""QEMU 7.2 as the front end: a guest of its own does I/O through our worker."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from typing import TYPE_CHECKING

from tests.host.dom0 import qemu
from tests.host.dom0.workers import Worker, option
from tests.host.net.namespace import Namespace

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


def listening(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path))
    made.listen()
    return made


def test_a_guest_of_qemu_gets_random_numbers(tmp_path: Path) -> None:
    with Worker(tmp_path, "rng") as worker:
        said = qemu.run(
            worker, "vhost-user-rng", "cat /sys/class/misc/hw_random/rng_current;"
            " head -c 1000 /dev/hwrng | wc -c"
        )  # fmt: skip
        assert said.split() == ["virtio_rng.0", "1000"]
        assert worker.stats()["0.bytes"] >= 1000
        assert worker.log == ""


def test_a_guest_of_qemu_reads_and_writes_a_disk(tmp_path: Path) -> None:
    image = tmp_path / "image"
    content = os.urandom(4 * MIB)
    image.write_bytes(content + bytes(4 * MIB))
    with Worker(tmp_path, f"blk,{option('path', image)},serial=of-qemu,queues=2") as worker:
        said = qemu.run(
            worker,
            # Its virtio-mmio lets a driver have 1024 entries, whatever the device said.
            "vhost-user-blk,num-queues=2,queue-size=1024",
            "cat /sys/block/vda/size /sys/block/vda/serial; echo;"
            " dd if=/dev/vda of=/tmp/a bs=64k count=64 2>/dev/null; md5sum < /tmp/a;"
            " dd if=/tmp/a of=/dev/vda bs=37k seek=4M oflag=seek_bytes conv=fsync 2>/dev/null;"
            " dd if=/tmp/a of=/dev/vda bs=4k count=3 conv=fsync oflag=direct 2>/dev/null; sync",
        )
        digest = hashlib.md5(content).hexdigest()
        assert said.split() == [f"{16 * 1024}", "of-qemu", digest, "-"]
        assert image.read_bytes() == content + content[: 4 * MIB]
        assert worker.log == ""


def test_a_guest_of_qemu_has_sockets_to_the_host(tmp_path: Path) -> None:
    initrd = qemu.with_program("vsock_peer", tmp_path)
    listener = listening(tmp_path / "v_7000")
    greeted: list[bytes] = []

    def host() -> None:
        """Answer the guest's connection, then connect to the guest and hear its answer."""
        peer, _ = listener.accept()
        came = b""
        while data := peer.recv(1 << 16):
            came += data
        peer.sendall(came)
        peer.close()
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(tmp_path / "v"))
            caller.sendall(b"CONNECT 22\n")
            greeted.append(caller.recv(100)[:3])
            caller.sendall(b"hello guest")
            caller.shutdown(socket.SHUT_WR)
            while data := caller.recv(100):
                greeted.append(data)

    thread = threading.Thread(target=host, daemon=True)
    thread.start()
    with Worker(tmp_path, f"vsock,cid=77,{option('path', tmp_path / 'v')}") as worker:
        said = qemu.run(
            worker,
            "vhost-user-vsock-device",
            "(vsock_peer listen 22 > /dev/null; echo answered) & sleep 1;"
            " vsock_peer send 7000 3000000; wait",
            initrd=initrd,
        )
        assert sorted(said.split("\n")[1:-1]) == ["3000000 came back", "answered"]
        thread.join(5)
        assert greeted == [b"OK ", b"hello guest"]
        assert worker.stats()["0.bytes_in"] == 3000011
        assert worker.log == ""
    listener.close()


def make(folder: Path, orders: str, listener: socket.socket) -> Worker:
    return Worker(folder, orders, listen=listener)


def test_a_guest_of_qemu_has_a_network(tmp_path: Path) -> None:
    content = os.urandom(MIB)
    came: list[bytes] = []

    def host(listener: socket.socket) -> None:
        """Send the guest something, and take something from it."""
        peer, _ = listener.accept()
        peer.sendall(content)
        peer.close()
        peer, _ = listener.accept()
        while data := peer.recv(1 << 16):
            came.append(data)
        peer.close()

    with Namespace() as namespace:
        namespace.ip("tuntap add dev t0 mode tap vnet_hdr multi_queue")
        namespace.ip("address add 10.9.9.1/24 dev t0")
        namespace.ip("link set t0 up")
        listener = namespace.call(socket.create_server, ("10.9.9.1", 8000))
        thread = threading.Thread(target=host, args=[listener], daemon=True)
        thread.start()
        # With two pairs QEMU 7.2 shares its memory twice.
        orders = "net,tap=t0,queues=2,mac=52:54:00:12:34:56,vhost=off"
        # QEMU's cards want a path: by it they know that descriptors can be passed.
        path = tmp_path / "card"
        with listening(path) as front, namespace.call(make, tmp_path, orders, front) as worker:
            said = qemu.run(
                worker,
                "virtio-net-device,mq=on,mac=52:54:00:12:34:56",
                "ip address add 10.9.9.2/24 dev eth0; ip link set eth0 up;"
                " ping -c 3 -i 0.1 10.9.9.1 | grep -c ttl=;"
                " nc 10.9.9.1 8000 > /tmp/came; md5sum < /tmp/came;"
                " nc 10.9.9.1 8000 < /tmp/came > /dev/null",
                path=path,
            )
            thread.join(10)
            assert said.split() == ["3", hashlib.md5(content).hexdigest(), "-"]
            assert b"".join(came) == content
            assert worker.log == ""
        listener.close()
