"""Event channels: numbers that a guest has given an MSI, and that something sends."""

from __future__ import annotations

import _thread
import time

from kvmpv import abi
from kvmpv.hypercall.buffers import buffer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final, Protocol

    from kvmpv.memory import GuestMemory

    Message = tuple[int, int]

    class Routes(Protocol):
        """What makes an eventfd an interrupt; all of it raises KvmError."""

        def set_routes(self, routes: list[tuple[int, int, int]]) -> None:
            """Replace the whole table: (GSI, address, data) each."""

        def irqfd(self, fd: int, gsi: int, *, on: bool) -> None:
            """Have the eventfd raise the GSI, or no more."""


# A guest that moves its interrupts about makes its vCPUs wait at each change of the table. These
# it may make at once, and so many a second for ever; then its calls take longer.
REBINDS: Final = 256
REBINDS_PER_SECOND: Final = 100


class EventChannels:
    """All channels of one guest.

    ``signal`` delivers one MSI (address, data). A sender within the VMM needs no GSI: only a
    backend's eventfd does, and its channel's number is its GSI then (docs/decisions/).
    """

    __slots__ = (
        *("_channels", "_connected", "_lock", "_memory", "_rebinds", "_rebound", "_routes"),
        *("_signal", "on_close", "reroutes", "sent"),
    )

    def __init__(
        self,
        memory: GuestMemory,
        signal: Callable[[int, int], int],
        routes: Routes | None = None,
    ) -> None:
        self._memory = memory
        self._signal = signal
        self._routes = routes
        self._lock = _thread.allocate_lock()
        self._channels: dict[int, Message | None] = {}
        self._connected: dict[int, int] = {}  # eventfd: channel
        self._rebinds = float(REBINDS)  # that are free
        self._rebound = 0.0  # when that was so
        self.on_close: list[Callable[[int], None]] = []
        self.sent = self.reroutes = 0

    def __contains__(self, channel: int) -> bool:
        return channel in self._channels

    def alloc(self, _cpu: int, *_: int) -> int:
        """KVMPV_HC_EVTCHN_ALLOC."""
        with self._lock:
            if len(self._channels) >= abi.MAX_CHANNELS:
                return -abi.ENOSPC
            channel = 0
            while channel in self._channels:
                channel += 1
            self._channels[channel] = None
            return channel

    def bind(self, _cpu: int, address: int, *_: int) -> int:
        """KVMPV_HC_EVTCHN_BIND."""
        head = self._memory.slice(address, abi.EVTCHN_BIND.size)
        if head is None:
            return -abi.EFAULT
        header = abi.unpack_evtchn_header(bytes(head))
        if header is None:
            return -abi.EINVAL
        size, count, message_size = header
        found = buffer(self._memory, address, size + count * message_size)
        if isinstance(found, int):
            return found
        messages = abi.unpack_evtchn_messages(bytes(found[size:]), count, message_size)
        pause = 0.0
        with self._lock:
            for where, data, channel in messages:
                if channel not in self._channels:
                    return -abi.ENOENT
                if not abi.message_is_valid(where, data):
                    return -abi.EINVAL
            routed = set(self._connected.values())
            moved = False
            for where, data, channel in messages:
                moved |= channel in routed and self._channels[channel] != (where, data)
                self._channels[channel] = (where, data)
            if moved:
                self._reroute()
                pause = self._too_fast()
        if pause:
            time.sleep(pause)
        return 0

    def send_call(self, _cpu: int, channel: int, *_: int) -> int:
        """KVMPV_HC_EVTCHN_SEND."""
        return self.send(channel)

    def send(self, channel: int) -> int:
        """Send the channel's event from any thread; return 0 or a negative errno."""
        message = self._channels.get(channel)
        if message is None:
            return -abi.ENOTCONN if channel in self._channels else -abi.ENOENT
        self.sent += 1
        self._signal(message[0], message[1])
        return 0

    def close(self, _cpu: int, channel: int, *_: int) -> int:
        """KVMPV_HC_EVTCHN_CLOSE."""
        if channel not in self._channels:
            return -abi.ENOENT
        for forget in self.on_close:
            forget(channel)
        with self._lock:
            if channel not in self._channels:
                return -abi.ENOENT  # another vCPU was faster
            self._disconnect([fd for fd, own in self._connected.items() if own == channel])
            del self._channels[channel]
        return 0

    # ---- eventfds of backends

    def connect(self, pairs: list[tuple[int, int]]) -> None:
        """Make eventfds send on channels: (channel, eventfd) each. Raises KvmError.

        A channel that is gone sends nothing, as one that is not bound.
        """
        with self._lock:
            there = [(channel, fd) for channel, fd in pairs if channel in self._channels]
            if self._routes is None or not there:
                return
            for channel, fd in there:
                self._connected[fd] = channel
            waiting = [fd for _, fd in there]
            try:
                self._reroute()
                for channel, fd in there:
                    self._routes.irqfd(fd, channel, on=True)
                    waiting.remove(fd)
            finally:
                for fd in waiting:
                    del self._connected[fd]

    def disconnect(self, fds: list[int]) -> None:
        """Make eventfds send no more; those that did not are left alone."""
        with self._lock:
            self._disconnect([fd for fd in fds if fd in self._connected])

    def _disconnect(self, fds: list[int]) -> None:
        # Their routes stay until the table is written the next time: nothing raises those GSIs.
        for fd in fds:
            channel = self._connected.pop(fd)
            if self._routes is not None:
                self._routes.irqfd(fd, channel, on=False)

    def _reroute(self) -> None:
        """Write the table: all channels that have an eventfd, and a message."""
        if self._routes is None:
            return
        table = []
        for channel in sorted(set(self._connected.values())):
            message = self._channels.get(channel)
            if message is not None:
                table.append((channel, *message))
        self.reroutes += 1
        self._routes.set_routes(table)

    def _too_fast(self) -> float:
        """Count a change of the table; return how long its caller has to wait, in seconds."""
        now = time.monotonic()
        since, self._rebound = now - self._rebound, now
        self._rebinds = min(REBINDS, self._rebinds + since * REBINDS_PER_SECOND) - 1
        return 0.0 if self._rebinds >= 0 else min(0.1, -self._rebinds / REBINDS_PER_SECOND)
