"""Two ends of a vhost-user session in one process, and a device that takes notes."""

from __future__ import annotations

import _socket
import fcntl
import os
import socket
from typing import TYPE_CHECKING

import pytest

from kvmpv.errors import VhostUserError
from kvmpv.vhostuser import message
from kvmpv.vhostuser.backend import Session
from kvmpv.vhostuser.device import Device, Vring
from kvmpv.vhostuser.message import HEADER

if TYPE_CHECKING:
    from kvmpv.vhostuser.shared import MemoryRegion

MIB = 1 << 20
VERSION_1 = 1 << 32
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
USER = 0x7F00_0000_0000  # where the front end says that it has the memory


class Recorder(Device):
    """Write down the calls of a session."""

    features = VERSION_1 | 1 << 29
    protocol_features = (
        message.PF_CONFIG | message.PF_INFLIGHT_SHMFD | message.PF_LOG_SHMFD | message.PF_NET_MTU
    )
    queue_count = 4

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.space = bytearray(b"0123456789abcdef")
        self.regions: list[MemoryRegion] = []
        self.running: dict[int, Vring] = {}
        self.inflight = (0, 0, 0, 0)
        self.log = (0, 0, -1)

    def config(self) -> bytes:
        return bytes(self.space)

    def set_config(self, offset: int, data: bytes) -> None:
        if offset + len(data) > len(self.space):
            raise VhostUserError("beyond the config space")
        self.space[offset : offset + len(data)] = data

    def set_features(self, features: int) -> None:
        self.calls.append(("features", features))

    def set_memory(self, regions: list[MemoryRegion]) -> None:
        assert not self.running
        self.regions = regions
        self.calls.append(("memory", len(regions)))

    def start_queue(self, index: int, vring: Vring) -> None:
        assert index not in self.running
        self.running[index] = vring
        self.calls.append(("start", index, vring.base, vring.enabled))

    def stop_queue(self, index: int) -> int:
        self.calls.append(("stop", index))
        return self.running.pop(index).base + 7

    def set_enabled(self, index: int, enabled: bool) -> None:
        self.calls.append(("enabled", index, enabled))

    def set_inflight(self, address: int, size: int, queues: int, ring_size: int) -> None:
        self.inflight = (address, size, queues, ring_size)

    def set_log(self, address: int, size: int, eventfd: int) -> None:
        self.log = (address, size, eventfd)

    def set_mtu(self, mtu: int) -> None:
        self.calls.append(("mtu", mtu))

    def reset(self) -> None:
        self.calls.append(("reset",))

    def disconnected(self) -> None:
        self.calls.append(("disconnected",))


def pair() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a stream, ours with a time-out so that no test hangs."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.settimeout(5)
    return ours, theirs


def raw(sock: socket.socket) -> _socket.socket:
    """Return the bare socket of a test's one, which is of no more use then."""
    return _socket.socket(fileno=sock.detach())


def memfd(size: int, seals: int = SEALS) -> int:
    """Return a memfd, sealed unless told otherwise."""
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def descriptors() -> set[tuple[int, str]]:
    """Return the descriptors that this process has, and what they are."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add((int(name), os.readlink(f"/proc/self/fd/{name}")))
        except OSError:
            pass  # the folder's own
    return found


class Peer:
    """A front end that sends what it likes to a session in the same thread."""

    def __init__(self, device: Device | None = None) -> None:
        self.device = device or Recorder()
        self.socket, theirs = pair()
        self.session = Session(raw(theirs), self.device)

    def send(self, request: int, payload: bytes = b"", *fds: int, flags: int = 1) -> None:
        """Send one message and have it served."""
        self.send_raw(HEADER.pack(request, flags, len(payload)) + payload, *fds)

    def send_raw(self, data: bytes, *fds: int) -> None:
        """Send bytes with descriptors and have them served."""
        socket.send_fds(self.socket, [data], fds)
        self.session.ready()

    def receive(self) -> tuple[int, int, bytes, list[int]]:
        """Return a reply: request, flags, payload, descriptors."""
        data, fds, _, _ = socket.recv_fds(self.socket, 4096, 8)
        request, flags, size = HEADER.unpack_from(data)
        assert len(data) == HEADER.size + size
        return request, flags, data[HEADER.size :], fds

    def ask(self, request: int, payload: bytes = b"", *fds: int, flags: int = 1) -> bytes:
        """Send one message and return the reply's payload."""
        self.send(request, payload, *fds, flags=flags)
        answered, flags, got, _ = self.receive()
        assert (answered, flags) == (request, message.VERSION | message.REPLY)
        return got

    def negotiate(self, features: int = message.PF_KNOWN & ~message.PF_STATUS) -> None:
        """Accept all features and the protocol features given."""
        self.send(message.SET_PROTOCOL_FEATURES, message.U64.pack(features))
        offered = self.ask(message.GET_FEATURES)
        self.send(message.SET_FEATURES, offered)

    def share(self, size: int = MIB) -> None:
        """Share one region of memory."""
        fd = memfd(size)
        table = message.TABLE.pack(1, 0) + message.REGION.pack(0, size, USER, 0)
        try:
            self.send(message.SET_MEM_TABLE, table, fd)
        finally:
            os.close(fd)

    def describe(self, index: int = 0, num: int = 16, base: int = 0, at: int = USER) -> None:
        """Describe a ring, up to its start."""
        self.send(message.SET_VRING_NUM, message.STATE.pack(index, num))
        self.send(message.SET_VRING_BASE, message.STATE.pack(index, base))
        parts = (at, at + 0x4000, at + 0x8000)
        self.send(message.SET_VRING_ADDR, message.ADDRESSES.pack(index, 0, *parts, 0))

    def kick(self, index: int = 0) -> int:
        """Give a ring an eventfd, which starts it; return that."""
        fd = os.eventfd(0)
        self.send(message.SET_VRING_KICK, message.U64.pack(index), fd)
        return fd

    def close(self) -> None:
        self.session.close()
        self.device.close()
        self.socket.close()


def refused(peer: Peer, request: int, payload: bytes = b"", *fds: int) -> str:
    """Send a message that is to be refused; the descriptors are closed here."""
    try:
        with pytest.raises(VhostUserError) as caught:
            peer.send(request, payload, *fds)
    finally:
        for fd in fds:
            os.close(fd)
    assert not caught.value.gone
    assert "\n" not in str(caught.value)
    return str(caught.value)
