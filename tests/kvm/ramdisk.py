"""A small disk behind vhost-user, in plain Python: what a test's guest reads and writes.

``python -m tests.kvm.ramdisk SOCKET-FD IMAGE-FD [key=value...]``: ``log=0`` keeps no log of
requests in flight, ``hold=1`` takes requests and answers none.
"""

from __future__ import annotations

import _socket
import os
import sys
import time
from typing import TYPE_CHECKING

from kvmpv.dom0.loop import Loop
from kvmpv.dom0.orders import DeviceOrders
from kvmpv.dom0.plain_queue import PlainQueue
from kvmpv.dom0.slot import ServedDevice, Slot
from kvmpv.vhostuser import message
from kvmpv.virtio import spec

if TYPE_CHECKING:
    from kvmpv.vhostuser.device import Vring
    from kvmpv.vhostuser.shared import MemoryRegion
    from kvmpv.virtio.ring import Chain

LOOK_NS = 20_000_000  # how often it looks at its file's size


class RamDisk(ServedDevice):
    """A disk in a file; ``queues`` may be used at once."""

    features = spec.mask(
        *(spec.F_VERSION_1, spec.F_INDIRECT_DESC, spec.F_EVENT_IDX),
        *(spec.BLK_F_FLUSH, spec.BLK_F_MQ, spec.BLK_F_CONFIG_WCE),
    )
    protocol_features = message.PF_CONFIG | message.PF_INFLIGHT_SHMFD

    def __init__(self, options: dict[str, str]) -> None:
        self._image = int(options["image"])
        self._hold = options.get("hold") == "1"
        if options.get("log") == "0":
            self.protocol_features = message.PF_CONFIG
        self.queue_count = int(options.get("queues", "1"))
        self._queues: dict[int, PlainQueue] = {}
        self._regions: list[MemoryRegion] = []
        self._features = 0
        self._wce = 1

    def config(self) -> bytes:
        capacity = os.fstat(self._image).st_size // spec.SECTOR
        values = (capacity, 0, 126, 0, 0, 0, 512, 0, 0, 0, 0, self._wce, 0, self.queue_count)
        return spec.BLK_CONFIG.pack(*values, 0, 0, 0, 0, 0, 0)

    def set_config(self, offset: int, data: bytes) -> None:
        if offset == spec.BLK_CONFIG_WCE_OFFSET:
            self._wce = data[0]

    def set_features(self, features: int) -> None:
        self._features = features

    def set_memory(self, regions: list[MemoryRegion]) -> None:
        self._regions = regions

    def start_queue(self, index: int, vring: Vring) -> None:
        def serve() -> None:
            self._serve(self._queues[index])

        self._queues[index] = PlainQueue(self.slot, self._regions, vring, self._features, serve)
        self._queues[index].run()

    def stop_queue(self, index: int) -> int:
        return self._queues.pop(index).stop()

    def set_enabled(self, index: int, enabled: bool) -> None:
        if enabled and index in self._queues:
            self._queues[index].run()

    def _serve(self, queue: PlainQueue) -> None:
        while (chain := queue.pop()) is not None:
            if not self._hold:
                self._answer(queue, chain)

    def _answer(self, queue: PlainQueue, chain: Chain) -> None:
        sent = chain.read()
        if len(sent) < spec.BLK_HDR.size or not chain.writable:
            queue.fail("no request")
            return
        kind, _, sector = spec.BLK_HDR.unpack_from(sent)
        size = os.fstat(self._image).st_size
        room = sum(len(piece) for piece in chain.writable) - 1
        data, status, at = bytes(room), spec.BLK_S_OK, sector * spec.SECTOR
        if kind == spec.BLK_T_IN and at + room <= size:
            data = os.pread(self._image, room, at)
        elif kind == spec.BLK_T_OUT and at + len(sent) - spec.BLK_HDR.size <= size:
            os.pwrite(self._image, sent[spec.BLK_HDR.size :], at)
        elif kind != spec.BLK_T_FLUSH:
            status = spec.BLK_S_IOERR
        queue.push(chain, chain.write(data + bytes([status])))


def main(socket: int, image: int, options: dict[str, str]) -> None:
    """Serve until the front end hangs up."""
    loop = Loop()
    orders = DeviceOrders(0, "blk", socket, False, {**options, "image": str(image)})
    slot = Slot(orders, RamDisk, loop, lambda text: None)
    slot.open()
    slot.connect(_socket.socket(fileno=socket))
    size = os.fstat(image).st_size

    def look() -> None:
        nonlocal size
        if os.fstat(image).st_size != size:
            size = os.fstat(image).st_size
            slot.config_changed()
        loop.call_at(time.monotonic_ns() + LOOK_NS, look)

    look()
    while slot.session is not None:
        loop.turn()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), dict(w.split("=", 1) for w in sys.argv[3:]))
