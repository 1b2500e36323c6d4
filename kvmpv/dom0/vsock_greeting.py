"""Those who connect to a guest's socket on the host, until they have said which port they want.

The line is read without what follows it: that is the guest's.
"""

from __future__ import annotations

import _socket
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from kvmpv.dom0.slot import Slot

LINE_MAX: Final = 32
WAITING_MAX: Final = 64
PATIENCE_NS: Final = 5_000_000_000
PORT_MAX: Final = 0xFFFFFFFF


class Arrival:
    """One who has connected, and what he has said so far."""

    __slots__ = ("deadline_ns", "line", "socket")

    def __init__(self, socket: _socket.socket) -> None:
        self.socket = socket
        self.line = b""
        self.deadline_ns = time.monotonic_ns() + PATIENCE_NS


class Greetings:
    """Take ``CONNECT <port>`` from each who connects, and pass on the socket and the port."""

    def __init__(
        self,
        slot: Slot,
        listener: _socket.socket,
        wanted: Callable[[_socket.socket, int], None],
    ) -> None:
        self._slot = slot
        self._listener = listener
        self._wanted = wanted
        self._waiting: dict[int, Arrival] = {}
        slot.watch(listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]
        except OSError:
            return
        socket = _socket.socket(fileno=fd)
        socket.setblocking(False)
        if len(self._waiting) >= WAITING_MAX:
            socket.close()
            return
        if not self._waiting:
            self._slot.call_at(time.monotonic_ns() + PATIENCE_NS, self._expire)
        self._waiting[fd] = Arrival(socket)
        self._slot.watch(fd, lambda: self._receive(fd))

    def _receive(self, fd: int) -> None:
        arrival = self._waiting[fd]
        try:
            seen = arrival.socket.recv(LINE_MAX, _socket.MSG_PEEK)
            line, end, _ = seen.partition(b"\n")
            arrival.line += arrival.socket.recv(len(line) + len(end)) if seen else b""
        except BlockingIOError:
            return
        except OSError:
            seen = end = b""
        if end:
            self._take(fd, arrival)
        elif not seen or len(arrival.line) > LINE_MAX:
            self._drop(fd)

    def _take(self, fd: int, arrival: Arrival) -> None:
        verb, _, number = arrival.line.decode("ascii", "replace").strip().partition(" ")
        if verb.upper() != "CONNECT" or not number.isdecimal() or int(number) > PORT_MAX:
            self._drop(fd)
            return
        del self._waiting[fd]
        self._slot.unwatch(fd)
        self._wanted(arrival.socket, int(number))

    def _drop(self, fd: int) -> None:
        arrival = self._waiting.pop(fd)
        self._slot.unwatch(fd)
        arrival.socket.close()

    def _expire(self) -> None:
        now = time.monotonic_ns()
        for fd, arrival in list(self._waiting.items()):
            if arrival.deadline_ns <= now:
                self._drop(fd)
        if self._waiting:
            soonest = min(arrival.deadline_ns for arrival in self._waiting.values())
            self._slot.call_at(soonest, self._expire)

    def close(self) -> None:
        """Hang up on all who wait, and take no more."""
        self._slot.forget(self._expire)
        self._slot.unwatch(self._listener.fileno())
        for fd in list(self._waiting):
            self._drop(fd)
