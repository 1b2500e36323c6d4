"""The control queue of a network device (virtio 1.2, section 5.1.6.5), served by the VMM itself.

A few requests in a guest's life: how many pairs of queues are used, which address the driver wants,
what it wants to receive. They need no backend that knows them.
"""

from __future__ import annotations

import os

from kvmpv.virtio import spec
from kvmpv.virtio.ring import DeviceRing, RingBroken

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from kvmpv.memory import GuestMemory
    from kvmpv.virtio.models import Net
    from kvmpv.virtio.queue import Queue

REQUEST_MAX: Final = 64 * 1024  # bytes; a table of addresses is the longest
AT_ONCE: Final = 64  # requests, then others get their turn


class NetControl:
    """Serve one control queue. ``enable_pairs(n)`` has the first n pairs served, or says False."""

    __slots__ = ("_enable_pairs", "_features", "_model", "_ring", "queue", "receive_mode")

    def __init__(
        self,
        model: Net,
        memory: GuestMemory,
        queue: Queue,
        features: int,
        enable_pairs: Callable[[int], bool],
    ) -> None:
        self._model = model
        self._features = features
        self._enable_pairs = enable_pairs
        self.queue = queue
        self.receive_mode: dict[int, int] = {}  # what the driver wants by NET_CTRL_RX command
        parts = (
            memory.slice(queue.descriptors, spec.desc_bytes(queue.size)),
            memory.slice(queue.available, spec.avail_bytes(queue.size)),
            memory.slice(queue.used, spec.used_bytes(queue.size)),
        )
        desc, avail, used = (memoryview(b"") if part is None else part for part in parts)
        self._ring = DeviceRing(memory.regions, queue.size, desc, avail, used, features, queue.base)

    @property
    def base(self) -> int:
        """Where the queue would go on."""
        return self._ring.next_avail

    def serve(self) -> bool:
        """Serve what is there, up to a limit and with a kick of our own for the rest.

        Return False when the driver has broken the ring.
        """
        try:
            os.eventfd_read(self.queue.kick)
        except BlockingIOError:
            pass  # woken for nothing, or by hand
        try:
            self._ring.disable_kicks()
            for _ in range(AT_ONCE):
                chain = self._ring.pop()
                if chain is None:
                    break
                request = b"".join(bytes(piece) for piece in chain.readable)[:REQUEST_MAX]
                answer = spec.NET_OK if self._obey(request) else spec.NET_ERR
                self._ring.push(chain.head, chain.write(bytes([answer])))
            if self._ring.enable_kicks():
                os.eventfd_write(self.queue.kick, 1)
        except RingBroken:
            return False
        self._ring.publish()
        self.queue.call_driver()  # always: a needless one costs less than one that is missed
        return True

    def _obey(self, request: bytes) -> bool:
        if len(request) < 2:
            return False
        group, command, data = request[0], request[1], request[2:]
        if group == spec.NET_CTRL_MQ:
            return command == spec.NET_CTRL_MQ_VQ_PAIRS_SET and self._set_pairs(data)
        if group == spec.NET_CTRL_MAC:
            return self._set_mac(command, data)
        if group == spec.NET_CTRL_RX:
            return self._set_receive_mode(command, data)
        if group == spec.NET_CTRL_ANNOUNCE:
            return self._announced(command)
        return False

    def _set_pairs(self, data: bytes) -> bool:
        pairs = int.from_bytes(data[:2], "little")
        allowed = self._features >> spec.NET_F_MQ & 1 and len(data) >= 2
        return bool(allowed) and 1 <= pairs <= self._model.pairs and self._enable_pairs(pairs)

    def _set_mac(self, command: int, data: bytes) -> bool:
        if command == spec.NET_CTRL_MAC_ADDR_SET:
            if not self._features >> spec.NET_F_CTRL_MAC_ADDR & 1 or len(data) < 6:
                return False
            self._model.set_mac(data[:6])
            return True
        # The filter table is advice (5.1.6.5.2): the network sends what it has.
        return (
            command == spec.NET_CTRL_MAC_TABLE_SET and self._features >> spec.NET_F_CTRL_RX & 1 == 1
        )

    def _set_receive_mode(self, command: int, data: bytes) -> bool:
        if not self._features >> spec.NET_F_CTRL_RX & 1 or not data:
            return False
        if command not in (spec.NET_CTRL_RX_PROMISC, spec.NET_CTRL_RX_ALLMULTI):
            return False
        self.receive_mode[command] = data[0]
        return True

    def _announced(self, command: int) -> bool:
        if not self._features >> spec.NET_F_GUEST_ANNOUNCE & 1:
            return False
        if command != spec.NET_CTRL_ANNOUNCE_ACK:
            return False
        self._model.announced()
        return True
