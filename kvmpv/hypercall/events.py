"""Event channels: numbers that a guest has given an MSI, and that something sends."""

from __future__ import annotations

import _thread

from kvmpv import abi
from kvmpv.hypercall.buffers import buffer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpv.memory import GuestMemory

    Message = tuple[int, int]


class EventChannels:
    """All channels of one guest.

    ``signal`` delivers one MSI (address, data). The channel's sender needs no GSI: only a backend's
    irqfd does, and a routing update makes every vCPU wait (docs/decisions/).
    """

    __slots__ = ("_channels", "_lock", "_memory", "_signal", "on_close", "sent")

    def __init__(self, memory: GuestMemory, signal: Callable[[int, int], int]) -> None:
        self._memory = memory
        self._signal = signal
        self._lock = _thread.allocate_lock()
        self._channels: dict[int, Message | None] = {}
        self.on_close: list[Callable[[int], None]] = []
        self.sent = 0

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
        with self._lock:
            for where, data, channel in messages:
                if channel not in self._channels:
                    return -abi.ENOENT
                if not abi.message_is_valid(where, data):
                    return -abi.EINVAL
            for where, data, channel in messages:
                self._channels[channel] = (where, data)
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
        with self._lock:
            if channel not in self._channels:
                return -abi.ENOENT
            for forget in self.on_close:
                forget(channel)
            del self._channels[channel]
        return 0
