"""Requests from the host: one event, and a record of what is pending."""

from __future__ import annotations

import _thread

from kvmpv import abi
from kvmpv.hypercall.buffers import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpv.hypercall.events import EventChannels
    from kvmpv.memory import GuestMemory


class Requests:
    """What the host has asked of this guest and the guest has not yet taken."""

    __slots__ = ("_events", "_lock", "_memory", "_pending", "_sysrq", "_vcpus", "channel")

    def __init__(self, memory: GuestMemory, events: EventChannels) -> None:
        self._memory = memory
        self._events = events
        self._lock = _thread.allocate_lock()
        self._pending = self._sysrq = self._vcpus = 0
        self.channel = abi.NO_CHANNEL
        events.on_close.append(self._forget_channel)

    def ask(self, request: int, *, sysrq: int = 0, vcpus: int = 0) -> bool:
        """Make a request pending; return whether the guest listens for requests at all."""
        with self._lock:
            self._pending |= request
            if request == abi.REQUEST_SYSRQ:
                self._sysrq = sysrq
            if request == abi.REQUEST_VCPUS:
                self._vcpus = vcpus
        return self._events.send(self.channel) == 0

    def bind(self, _cpu: int, channel: int, *_: int) -> int:
        """KVMPV_HC_REQUESTS_BIND."""
        if channel != abi.NO_CHANNEL and channel not in self._events:
            return -abi.ENOENT
        self.channel = channel
        if self._pending:
            self._events.send(channel)
        return 0

    def get(self, _cpu: int, address: int, *_: int) -> int:
        """KVMPV_HC_REQUESTS_GET."""
        found = record(self._memory, address, abi.REQUESTS_VERSION, abi.REQUESTS)
        if isinstance(found, int):
            return found
        size = int.from_bytes(found[2:4], "little")
        with self._lock:
            found[:] = abi.pack_requests(size, self._pending, self._sysrq, self._vcpus)
            self._pending = 0
        return 0

    def _forget_channel(self, channel: int) -> None:
        if self.channel == channel:
            self.channel = abi.NO_CHANNEL
