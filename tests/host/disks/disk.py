"""A guest's disk under test: a worker's process behind a front end and a driver's ring of ours."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from kvmpv.virtio import spec
from tests.host.dom0.workers import Worker, option
from tests.unit.vhostuser.driver import VERSION_1, DriverRing, Memory, readable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Self

    from kvmpv.vhostuser.frontend import Frontend

SECTOR = 512
MIB = 1 << 20
EVERYTHING = (1 << 64) - 1
NOT_A_DRIVERS = spec.mask(26, 30, spec.F_ACCESS_PLATFORM)


class Request:
    """A request that is out: where its data is, and its status once it has come back."""

    def __init__(self, kind: int, sector: int, data: int, length: int, status: int) -> None:
        self.kind = kind
        self.sector = sector
        self.data = data
        self.length = length
        self.status_at = status
        self.written = -1


class Disk:
    """Device 0 of a worker, driven from here; it outlives its workers as a guest does."""

    def __init__(
        self,
        folder: Path,
        options: str,
        *,
        queues: int = 1,
        size: int = 64,
        features: int = EVERYTHING,
        log: bool = True,
        memory: int = 16 * MIB,
        fds: Sequence[int] = (),
        neighbours: Sequence[str] = (),
        of: Disk | None = None,
        number: int = 0,
    ) -> None:
        """Start a worker for the disk, or be ``neighbours`` ``number`` of another one's."""
        self.folder = folder
        self.options = options
        self.features = features
        self.fds = fds
        self.devices = [f"blk,{options}" for options in (self.options, *neighbours)]
        self.of = of
        self.number = number
        self.log = log
        self.size = size
        self.memory = Memory(memory)
        self.rings = [DriverRing(self.memory, size) for _ in range(queues)]
        self._start_of_buffers = self.memory.next
        self.inflight: tuple[int, int, int] | None = None
        self.out: dict[tuple[int, int], Request] = {}
        self.worker: Worker
        self.frontend: Frontend
        self.start()

    def start(self) -> None:
        """Start a worker, the first or a successor, and give it all that its predecessor had."""
        again = int(self.inflight is not None)
        for fd in self.fds:
            os.set_inheritable(fd, True)
        if self.of:
            self.worker = self.of.worker
        else:
            self.devices[0] = f"blk,{self.options}"
            self.worker = Worker(self.folder, *self.devices, fds=self.fds, restart=again)
        assert self.worker.ready == "ok", self.worker.ready
        self.frontend = self.worker.frontend(self.number, timeout=30)
        self.frontend.negotiate()
        self.accepted = self.frontend.features & (
            self.features & ~NOT_A_DRIVERS | VERSION_1 | 1 << 30
        )
        self.frontend.set_features(self.accepted)
        self.frontend.set_mem_table(self.memory.table())
        queues = len(self.rings)
        if self.log:
            if self.inflight is None:
                self.inflight = self.frontend.get_inflight_fd(queues, self.size)
            self.frontend.set_inflight_fd(*self.inflight, queues, self.size)
        for index, ring in enumerate(self.rings):
            ring.give_to(self.frontend, index, ring.used_index)

    def kill(self) -> None:
        """Kill the worker as hard as can be."""
        self.worker.process.kill()
        self.worker.process.wait()
        self.frontend.close()
        self.worker.close()

    def restart(self) -> None:
        """Kill the worker, and bring another one."""
        self.kill()
        self.start()

    # ---- requests

    def forget_buffers(self) -> None:
        """Use the buffers anew; nothing is out."""
        assert not self.out
        self.memory.next = self._start_of_buffers

    def post(
        self,
        kind: int,
        sector: int = 0,
        data: bytes | int = b"",
        *,
        queue: int = 0,
        align: int = 16,
        skew: int = 0,
        pieces: int = 1,
        kick: int = True,
    ) -> Request:
        """Send a request, with bytes for the device, or the number of those that it is to write."""
        memory = self.memory
        header = memory.put(struct.pack("<IIQ", kind, 0, sector))
        length = data if isinstance(data, int) else len(data)
        at = memory.take(length + skew, align) + skew
        if not isinstance(data, int):
            memory.map[at : at + length] = data
        status = memory.put(b"\xee")
        writable = isinstance(data, int)
        share = (length + pieces - 1) // pieces
        parts = [
            (at + offset, min(share, length - offset), writable)
            for offset in range(0, length, share or 1)
        ]
        request = Request(kind, sector, at, length, status)
        chain = (header, 16, False), *parts, (status, 1, True)
        head = self.rings[queue].post(*chain, kick=bool(kick))
        self.out[queue, head] = request
        return request

    def reap(self, queue: int = 0, seconds: float = 20) -> Request:
        """Wait for the next request that comes back."""
        ring = self.rings[queue]
        # With EVENT_IDX: ask to be told of the next one.
        self.memory.put16(ring.avail + 4 + 2 * ring.size, ring.seen)
        head, written = ring.wait(seconds)
        request = self.out.pop((queue, head))
        request.written = written
        return request

    def reap_all(self, queue: int = 0) -> list[Request]:
        """Wait for all that is out."""
        return [self.reap(queue) for _ in range(sum(key[0] == queue for key in self.out))]

    def status(self, request: Request) -> int:
        """Return a request's status."""
        return self.memory.map[request.status_at]

    def content(self, request: Request) -> bytes:
        """Return what a request's data is now."""
        return self.memory.map[request.data : request.data + request.length]

    def do(self, kind: int, sector: int = 0, data: bytes | int = b"", **how: int) -> int:
        """Send a request and return its status; nothing else is out."""
        request = self.post(kind, sector, data, **how)
        assert self.reap(how.get("queue", 0)) is request
        return self.status(request)

    def write(self, sector: int, data: bytes, **how: int) -> int:
        """Write; return the status."""
        return self.do(spec.BLK_T_OUT, sector, data, **how)

    def read(self, sector: int, length: int, **how: int) -> bytes:
        """Read; return the bytes of a request that went well."""
        request = self.post(spec.BLK_T_IN, sector, length, **how)
        assert self.reap(how.get("queue", 0)) is request
        assert self.status(request) == spec.BLK_S_OK
        assert request.written == length + 1
        return self.content(request)

    def flush(self) -> int:
        """Flush; return the status."""
        return self.do(spec.BLK_T_FLUSH)

    def range(self, kind: int, sector: int, sectors: int, flags: int = 0) -> int:
        """Discard, or write zeroes; return the status."""
        return self.do(kind, 0, struct.pack("<QII", sector, sectors, flags))

    def is_broken(self, queue: int = 0, seconds: float = 10) -> bool:
        """Say whether the device tells that its queue is broken."""
        return readable(self.rings[queue].err, seconds)

    # ---- what the worker knows

    def counter(self, name: str) -> int:
        """Return one of its counters."""
        return self.worker.stats()[f"{self.number}.{name}"]

    @property
    def config(self) -> tuple[int, ...]:
        """Return the config space."""
        return spec.BLK_CONFIG.unpack(self.frontend.get_config(0, spec.BLK_CONFIG.size))

    def close(self) -> None:
        self.frontend.close()
        if not self.of:
            self.worker.close()
        for ring in self.rings:
            ring.close()
        if self.inflight:
            os.close(self.inflight[0])
        self.memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def image(folder: Path, size: int = 4 * MIB, content: bytes = b"") -> Path:
    """Make an image of ``size`` bytes that begins with ``content``."""
    path = folder / "disk.img"
    with open(path, "wb") as file:
        file.write(content)
        file.truncate(size)
    return path


def on(path: Path, *more: str) -> str:
    """Return a disk's options."""
    return ",".join([option("path", path), *more])


def pattern(number: int, length: int = 4096) -> bytes:
    """Return bytes that tell which number they were made of."""
    return struct.pack("<Q", number) * (length // 8)
