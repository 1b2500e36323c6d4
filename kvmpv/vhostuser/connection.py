"""A vhost-user stream: whole messages with their descriptors, whatever the other side sends.

Nothing here blocks but ``wait`` and ``send``, and those have a time-out. A message may come in
pieces; its descriptors come with its first byte (docs/interop/vhost-user.rst, Communication).
"""

from __future__ import annotations

import _socket
import os
import select
import struct
import time

from kvmpv.errors import VhostUserError
from kvmpv.vhostuser import message
from kvmpv.vhostuser.message import HEADER, Message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

INT_SIZE: Final = 4
# One more than a message may have, so that a surplus is seen rather than cut off.
ANCILLARY_SIZE: Final = _socket.CMSG_SPACE((message.FDS_MAX + 1) * INT_SIZE)
NO_WAIT: Final = _socket.MSG_DONTWAIT | _socket.MSG_CMSG_CLOEXEC


def close_all(fds: list[int]) -> None:
    """Close descriptors and forget them."""
    while fds:
        os.close(fds.pop())


class Connection:
    """One end of a vhost-user stream; it owns the socket."""

    __slots__ = ("_fds", "_flags", "_header", "_payload", "_request", "_size", "_socket")

    def __init__(self, socket: _socket.socket) -> None:
        socket.setblocking(False)
        self._socket = socket
        self._header = b""
        self._payload = b""
        self._request = self._flags = self._size = 0
        self._fds: list[int] = []

    def fileno(self) -> int:
        """Return the socket's descriptor, -1 once closed."""
        return self._socket.fileno()

    def close(self) -> None:
        """Hang up, and close the descriptors of a message that was never whole."""
        close_all(self._fds)
        self._socket.close()

    # ---- receiving

    def take(self) -> Message | None:
        """Return the next message if all of it is here, else None.

        Raise ``VhostUserError`` for what is no message, and at the stream's end; the connection
        is of no use then.
        """
        try:
            return self._take()
        except VhostUserError:
            close_all(self._fds)
            raise

    def _take(self) -> Message | None:
        if len(self._header) < HEADER.size:
            data = self._read(HEADER.size - len(self._header), first=not self._header)
            if data is None:
                return None
            self._header += data
            if len(self._header) < HEADER.size:
                return None
            self._request, self._flags, self._size = HEADER.unpack(self._header)
            if self._flags & message.VERSION_MASK != message.VERSION:
                raise VhostUserError(f"a message of another protocol (flags {self._flags:#x})")
            if self._size > message.PAYLOAD_MAX:
                raise VhostUserError(f"a message of {self._size} bytes is too long")
        while len(self._payload) < self._size:
            data = self._read(self._size - len(self._payload), first=False)
            if data is None:
                return None
            self._payload += data
        whole = Message(self._request, self._flags, self._payload, self._fds)
        self._header = self._payload = b""
        self._fds = []
        return whole

    def _read(self, count: int, *, first: bool) -> bytes | None:
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(count, ANCILLARY_SIZE, NO_WAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            raise VhostUserError(f"the other side is gone: {error.strerror}", gone=True) from None
        came = False
        for level, kind, value in ancillary:
            if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
                usable = len(value) - len(value) % INT_SIZE
                self._fds += struct.unpack(f"{usable // INT_SIZE}i", value[:usable])
                came = True
        if flags & _socket.MSG_CTRUNC or len(self._fds) > message.FDS_MAX:
            raise VhostUserError("a message with too many descriptors")
        if came and not first:
            raise VhostUserError("descriptors came within a message")
        if not data:
            if self._header:
                raise VhostUserError("the other side hung up within a message", gone=True)
            raise VhostUserError("the other side has hung up", gone=True)
        return data

    def wait(self, seconds: float) -> Message:
        """Return the next message; raise ``VhostUserError`` if none is whole in that time."""
        deadline = time.monotonic() + seconds
        while True:
            got = self.take()
            if got is not None:
                return got
            self._poll(select.POLLIN, deadline, "the other side does not answer")

    def _poll(self, events: int, deadline: float, otherwise: str) -> None:
        poll = select.poll()
        poll.register(self._socket.fileno(), events)
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise VhostUserError(otherwise)

    # ---- sending

    def send(
        self,
        request: int,
        flags: int,
        payload: bytes = b"",
        fds: Sequence[int] = (),
        seconds: float = 0,
    ) -> None:
        """Send a message; the descriptors stay the caller's.

        Raise ``VhostUserError`` when the other side is gone or has not read enough of what it
        was sent before ``seconds`` are over; half a message may be out then, so hang up.
        """
        data = HEADER.pack(request, flags | message.VERSION, len(payload)) + payload
        ancillary = []
        if fds:
            packed = struct.pack(f"{len(fds)}i", *fds)
            ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)]
        deadline = time.monotonic() + seconds
        while data:
            try:
                sent = self._socket.sendmsg([data], ancillary, _socket.MSG_NOSIGNAL)
            except BlockingIOError:
                self._poll(select.POLLOUT, deadline, "the other side does not read")
                continue
            except OSError as error:
                gone = f"the other side is gone: {error.strerror}"
                raise VhostUserError(gone, gone=True) from None
            data = data[sent:]
            ancillary = []
