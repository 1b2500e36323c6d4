"""Console ports: byte streams between the guest and a socket that the VMM was handed.

Nothing is buffered here: bytes go from guest memory into the socket and back, and what the socket
does not take, the guest keeps and is sent an event for. So a flood costs the guest its own time.
"""

from __future__ import annotations

import _socket

from kvmpv import abi
from kvmpv.hypercall.buffers import buffer, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from kvmpv.hypercall.events import EventChannels
    from kvmpv.memory import GuestMemory

LAST_LINES: Final = 16384  # bytes of console that a crash report can show

READABLE: Final = 1
WRITABLE: Final = 2


class Port:
    """One port: its stream socket (non-blocking), its channel, what its guest waits for."""

    __slots__ = ("channel", "columns", "eof", "open", "rows", "socket", "waits")

    def __init__(self, socket: _socket.socket | None) -> None:
        self.attach(socket)
        self.reset()
        self.columns = self.rows = 0

    def attach(self, socket: _socket.socket | None) -> None:
        """Take another stream; the old one is closed once nobody uses it."""
        if socket is None:
            socket = _socket.socket(_socket.AF_UNIX)  # not connected: end of file
            self.open, self.eof = False, True
        else:
            socket.setblocking(False)
            self.open, self.eof = True, False
        self.socket = socket

    def hang_up(self) -> None:
        """End the stream in both directions."""
        self.open, self.eof = False, True
        try:
            self.socket.shutdown(_socket.SHUT_RDWR)
        except OSError:
            return  # the host was faster, or there is none

    def reset(self) -> None:
        """Forget the guest: it boots again."""
        self.channel = abi.NO_CHANNEL
        self.waits = 0


class Ports:
    """All ports of one guest. ``watch(port number, what it waits for)`` arms one event."""

    __slots__ = ("_events", "_memory", "_ports", "_watch", "last", "log_dropped", "log_records")

    def __init__(
        self,
        memory: GuestMemory,
        events: EventChannels,
        ports: list[Port],
        watch: Callable[[int, int], None],
    ) -> None:
        self._memory = memory
        self._events = events
        self._ports = ports
        self._watch = watch
        self.last = bytearray()
        self.log_dropped = self.log_records = 0
        events.on_close.append(self._forget_channel)

    def log(self, _cpu: int, address: int, length: int, *_: int) -> int:
        """KVMPV_HC_LOG."""
        found = buffer(self._memory, address, length)
        if isinstance(found, int):
            return found
        text = bytes(found).replace(b"\n", b"\r\n")
        self._remember(text)
        self.log_records += 1
        port = self._ports[abi.PORT_TERMINAL]
        sent = 0
        if port.open:
            try:
                sent = port.socket.send(text)
            except OSError:
                sent = 0
        self.log_dropped += len(text) - sent
        return length

    def write(self, _cpu: int, number: int, address: int, length: int, *_: int) -> int:
        """KVMPV_HC_PORT_WRITE."""
        found = self._buffer_of(number, address, length)
        if isinstance(found, int):
            return found
        port = self._ports[number]
        if not port.open:
            return -abi.EPIPE
        if not length:
            return 0
        try:
            sent = port.socket.send(found)
        except BlockingIOError:
            self._wait(number, WRITABLE)
            return -abi.EAGAIN
        except OSError:
            port.open = False
            return -abi.EPIPE
        if number == abi.PORT_TERMINAL:
            self._remember(bytes(found[:sent]))
        return sent

    def read(self, _cpu: int, number: int, address: int, length: int, *_: int) -> int:
        """KVMPV_HC_PORT_READ."""
        found = self._buffer_of(number, address, length)
        if isinstance(found, int):
            return found
        port = self._ports[number]
        if not length or port.eof:
            return 0
        try:
            count = port.socket.recv_into(found)
        except BlockingIOError:
            self._wait(number, READABLE)
            return -abi.EAGAIN
        except OSError:
            count = 0
        if not count:
            port.eof = True
        elif count < length:
            self._wait(number, READABLE)  # it is drained: spare the guest a call to learn that
        return count

    def bind(self, _cpu: int, number: int, channel: int, *_: int) -> int:
        """KVMPV_HC_PORT_BIND."""
        if number >= abi.MAX_PORTS:
            return -abi.ENOENT
        if channel != abi.NO_CHANNEL and channel not in self._events:
            return -abi.ENOENT
        self._ports[number].channel = channel
        self.notify(number)
        return 0

    def status(self, _cpu: int, number: int, address: int, *_: int) -> int:
        """KVMPV_HC_PORT_STATUS."""
        if number >= abi.MAX_PORTS:
            return -abi.ENOENT
        found = record(self._memory, address, abi.PORT_STATUS_VERSION, abi.PORT_STATUS)
        if isinstance(found, int):
            return found
        port = self._ports[number]
        flags = 0 if port.eof or port.waits & READABLE else abi.PORT_READABLE
        flags |= abi.PORT_WRITABLE if port.open and not port.waits & WRITABLE else 0
        flags |= abi.PORT_EOF if port.eof else 0
        size = int.from_bytes(found[2:4], "little")
        found[:] = abi.pack_port_status(size, flags, port.columns, port.rows)
        return 0

    def close(self, _cpu: int, number: int, *_: int) -> int:
        """KVMPV_HC_PORT_CLOSE."""
        if number >= abi.MAX_PORTS:
            return -abi.ENOENT
        port = self._ports[number]
        if port.open:
            port.open = False
            try:
                port.socket.shutdown(_socket.SHUT_WR)
            except OSError:
                return 0  # the host was faster
        return 0

    def notify(self, number: int) -> None:
        """Send the port's event; whatever its guest waited for, it looks again."""
        port = self._ports[number]
        port.waits = 0
        self._events.send(port.channel)

    def set_window(self, number: int, columns: int, rows: int) -> None:
        """Tell the guest a new window size."""
        port = self._ports[number]
        port.columns, port.rows = columns, rows
        self._events.send(port.channel)

    def _buffer_of(self, number: int, address: int, length: int) -> memoryview | int:
        """Return the buffer of a call on a port, or the negative errno that is due."""
        if number >= abi.MAX_PORTS:
            return -abi.ENOENT
        return buffer(self._memory, address, length)

    def _wait(self, number: int, what: int) -> None:
        port = self._ports[number]
        port.waits |= what
        self._watch(number, port.waits)

    def _remember(self, text: bytes) -> None:
        self.last += text
        if len(self.last) > 2 * LAST_LINES:
            del self.last[:-LAST_LINES]

    def _forget_channel(self, channel: int) -> None:
        for port in self._ports:
            if port.channel == channel:
                port.channel = abi.NO_CHANNEL
