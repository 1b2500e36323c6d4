"""One connection between a guest and a socket of the host's (virtio 1.2, 5.10.6).

Nothing is copied but what the host does not read at once: that waits here, and is never more than
the guest was given credit for.
"""

from __future__ import annotations

import _socket
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from kvmpv.dom0.vsock import VsockDevice

# Operations, and the two halves that SHUTDOWN tells of
OP_REQUEST: Final = 1
OP_RESPONSE: Final = 2
OP_RST: Final = 3
OP_SHUTDOWN: Final = 4
OP_RW: Final = 5
OP_CREDIT_UPDATE: Final = 6
OP_CREDIT_REQUEST: Final = 7
SHUT_RECEIVE: Final = 1  # the sender takes no more
SHUT_SEND: Final = 2  # the sender sends no more
SHUT_BOTH: Final = SHUT_RECEIVE | SHUT_SEND

BUFFER: Final = 128 << 10  # what a guest may send before the host has read it
TELL_AFTER: Final = BUFFER // 4  # credit that the guest is told of without being asked
U32: Final = 0xFFFFFFFF
IOV_MAX: Final = 1024
NOT_WATCHED: Final = -1

# States
CONNECTING: Final = "connecting"  # the host's side asked; the guest has not answered
OPEN: Final = "open"
CLOSING: Final = "closing"  # the host's side has gone; the guest is to take note of that


class Stream:
    """A connection; ``key`` is the guest's port and the host's."""

    __slots__ = (
        "_buffer",
        "_device",
        "_fd",
        "_forwarded",
        "_peer_alloc",
        "_peer_forwarded",
        "_sent",
        "_socket",
        "_told",
        "_watched",
        "deadline_ns",
        "eof",
        "guest_shut",
        "key",
        "starved",
        "state",
    )

    def __init__(
        self, device: VsockDevice, key: tuple[int, int], socket: _socket.socket, state: str
    ) -> None:
        self._device = device
        self.key = key
        self._socket = socket
        self._fd = socket.fileno()
        self.state = state
        self._buffer = bytearray()  # from the guest, not yet taken by the host
        self._forwarded = 0  # bytes that the host has taken in all, modulo 2**32
        self._told = 0  # what the guest knows of that
        self._sent = 0  # bytes that the guest was sent in all, modulo 2**32
        self._peer_alloc = self._peer_forwarded = 0
        self._watched = NOT_WATCHED
        self.guest_shut = 0  # halves that the guest has shut
        self.eof = False  # the host's side sends no more
        self.starved = False  # the guest has no buffers for what the host sends
        self.deadline_ns = 0  # when the guest must have answered, 0 if it need not

    # ---- credit (5.10.6.3)

    @property
    def credit(self) -> int:
        """How many bytes the guest has room for."""
        in_flight = (self._sent - self._peer_forwarded) & U32
        return max(self._peer_alloc - in_flight, 0)

    def take_credit(self, alloc: int, forwarded: int) -> None:
        """Take note of what a packet says of the guest's buffer."""
        self._peer_alloc = alloc
        self._peer_forwarded = forwarded

    def own_credit(self) -> tuple[int, int]:
        """Return what each packet tells the guest of our buffer."""
        self._told = self._forwarded
        return BUFFER, self._forwarded

    # ---- from the guest

    def deliver(self, pieces: list[memoryview], length: int) -> bool:
        """Pass data on to the host's side; return False where the guest had no credit for it."""
        if len(self._buffer) + length > BUFFER:
            return False
        if self.state == CLOSING:
            self._forwarded = (self._forwarded + length) & U32  # nobody wants it any more
            return True
        sent = 0
        if not self._buffer:
            try:
                sent = self._socket.sendmsg(
                    pieces[:IOV_MAX], (), _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL
                )
            except BlockingIOError:
                pass
            except OSError:
                self.break_off()
                return True
            self._forwarded = (self._forwarded + sent) & U32
        for piece in pieces:
            self._buffer += piece[sent:]
            sent = max(sent - len(piece), 0)
        self._after_output()
        return True

    def _flush(self) -> None:
        try:
            sent = self._socket.send(self._buffer, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return
        except OSError:
            self.break_off()
            return
        del self._buffer[:sent]
        self._forwarded = (self._forwarded + sent) & U32
        self._after_output()

    def _after_output(self) -> None:
        if (self._forwarded - self._told) & U32 >= TELL_AFTER:
            self._device.send_credit(self)
        if not self._buffer and self.guest_shut & SHUT_SEND:
            self._finish_output()
        self.watch()

    def _finish_output(self) -> None:
        if self.guest_shut == SHUT_BOTH:
            self._device.break_off(self)
            return
        self._shutdown(_socket.SHUT_WR)

    def _shutdown(self, how: int) -> None:
        try:
            self._socket.shutdown(how)
        except OSError:
            pass  # the host's side is gone, which the next event tells

    def shut(self, flags: int) -> None:
        """Take note of which halves the guest has shut."""
        self.guest_shut |= flags & SHUT_BOTH
        if self.guest_shut & SHUT_RECEIVE and not self.eof:
            self.eof = True
            self._shutdown(_socket.SHUT_RD)
        if self.guest_shut & SHUT_SEND and not self._buffer:
            self._finish_output()
        self.watch()

    # ---- from the host

    def opened(self, greeting: bytes) -> None:
        """The guest has taken the connection: say so, and pass on what comes."""
        self.state = OPEN
        self.deadline_ns = 0
        if greeting:
            try:
                self._socket.send(greeting, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
            except OSError:
                self.break_off()
                return
        self.watch()

    def receive_into(self, pieces: list[memoryview]) -> int:
        """Read from the host's side into a guest's buffers; -1: nothing there, 0: the end."""
        try:
            got, _, _, _ = self._socket.recvmsg_into(pieces[:IOV_MAX], 0, _socket.MSG_DONTWAIT)
        except BlockingIOError:
            return -1
        except OSError:
            return 0
        self._sent = (self._sent + got) & U32
        return got

    def ready(self, events: int) -> None:
        """The socket can be written to or read from, or is hung up."""
        if self._buffer and events & (select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP):
            self._flush()
        if self.eof:
            if events & (select.EPOLLHUP | select.EPOLLERR):
                self.break_off()
        elif self.state == OPEN and self._watched & select.EPOLLIN:
            self._device.read(self)
        self.watch()

    def reached_end(self) -> None:
        """The host's side sends no more: tell the guest, and whether it still listens."""
        self.eof = True
        gone = self._hung_up()
        self._device.send(self, OP_SHUTDOWN, SHUT_BOTH if gone else SHUT_SEND)
        if gone:
            self.break_off(told=True)
        else:
            self.watch()

    def _hung_up(self) -> bool:
        poll = select.poll()
        poll.register(self._fd, 0)
        return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))

    def break_off(self, told: bool = False) -> None:
        """The host's side is gone: what it has not read is lost, and the guest is told."""
        if self.state == CLOSING:
            return
        if not told:
            self._device.send(self, OP_SHUTDOWN, SHUT_BOTH)
        self.eof = True
        self._forwarded = (self._forwarded + len(self._buffer)) & U32
        self._buffer.clear()
        self.hang_up()
        self._device.expect(self)

    # ---- waiting

    def _wanted(self) -> int:
        """Return the events that there is use for; a hang-up comes with any, even with none."""
        wanted = select.EPOLLOUT if self._buffer else 0
        if self.eof:
            return wanted
        if self.state == OPEN and not self.starved and self.credit:
            wanted |= select.EPOLLIN
        return wanted or NOT_WATCHED

    def watch(self) -> None:
        """Wait for what there is use for now."""
        if self.state == CLOSING:
            return
        wanted = self._wanted()
        if wanted == self._watched:
            return
        slot = self._device.slot
        if self._watched == NOT_WATCHED:
            slot.watch_events(self._fd, self.ready, wanted)
        elif wanted == NOT_WATCHED:
            slot.unwatch(self._fd)
        else:
            slot.loop.rewatch(self._fd, wanted)
        self._watched = wanted

    def hang_up(self) -> None:
        """Close the host's side."""
        if self._watched != NOT_WATCHED:
            self._device.slot.unwatch(self._fd)
            self._watched = NOT_WATCHED
        self.state = CLOSING
        self._socket.close()
