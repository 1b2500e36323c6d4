"""A driver of a disk, with the log of requests in flight that a VMM keeps for its back ends."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from kvmpv.vhostuser import message
from tests.unit.vhostuser.driver import DriverRing, Memory

if TYPE_CHECKING:
    from kvmpv.vhostuser.frontend import Frontend

SECTOR = 512
HEAD = struct.Struct("<IIQ")  # virtio 1.2, 5.2.6
IN, OUT, FLUSH = 0, 1, 4
FEATURES = 1 << 32 | 1 << 9 | 1 << 30


class Request:
    """A request on its way."""

    def __init__(self, sector: int, status: int, data: int, length: int) -> None:
        self.sector = sector
        self.status = status
        self.data = data
        self.length = length


class Disk:
    """One queue of a disk, across the back ends that serve it."""

    def __init__(self, frontend: Frontend, size: int = 64) -> None:
        self.memory = Memory(16 << 20)
        self.ring = DriverRing(self.memory, size)
        self.requests: dict[int, Request] = {}
        self.inflight = (-1, 0, 0)
        self.connect(frontend, 0)

    def connect(self, frontend: Frontend, base: int) -> None:
        """Set the disk up at a back end, as a VMM does at first and after a back end's death."""
        self.frontend = frontend
        frontend.negotiate()
        frontend.set_features(frontend.features & FEATURES)
        frontend.set_mem_table(self.memory.table())
        if frontend.protocol_features & message.PF_INFLIGHT_SHMFD:
            if self.inflight[0] < 0:
                self.inflight = frontend.get_inflight_fd(1, self.ring.size)
            frontend.set_inflight_fd(*self.inflight, 1, self.ring.size)
        self.ring.give_to(frontend, 0, base)
        os.eventfd_write(self.ring.kick, 1)

    def submit(self, kind: int, sector: int = 0, data: bytes = b"", reads: int = 0) -> int:
        """Send a request; return its head."""
        memory = self.memory
        pieces = [(memory.put(HEAD.pack(kind, 0, sector)), HEAD.size, False)]
        at = memory.put(data) if data else memory.take(max(reads, 1))
        if data or reads:
            pieces.append((at, len(data) or reads, not data))
        status = memory.put(b"\xff")
        head = self.ring.post(*pieces, (status, 1, True))
        self.requests[head] = Request(sector, status, at, reads)
        return head

    def finish(self, seconds: float = 10) -> tuple[int, int, bytes]:
        """Wait for the next request that is done: its head, status, and what was read."""
        head, _ = self.ring.wait(seconds)
        done = self.requests.pop(head)
        return head, self.memory.map[done.status], self.memory.map[done.data :][: done.length]

    def read(self, sector: int, count: int) -> bytes:
        """Read at once."""
        self.submit(IN, sector, reads=count)
        _, status, data = self.finish()
        assert status == 0
        return data

    def close(self) -> None:
        self.frontend.close()
        if self.inflight[0] >= 0:
            os.close(self.inflight[0])
        self.ring.close()
        self.memory.close()
