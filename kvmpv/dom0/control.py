"""The worker's control socket: one line in, one line out, as the VMM's.

    status | stats | resize NUMBER | limit NUMBER KEY=VALUE... | connect NUMBER
    | device-add NUMBER,KIND[,KEY=VALUE...] | device-remove NUMBER | terminate

A line that needs a connected socket brings it along as SCM_RIGHTS. docs/dom0.md says more.
"""

from __future__ import annotations

import _socket
import os
import struct

from kvmpv.dom0 import orders
from kvmpv.errors import BadInput, KvmpvError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from kvmpv.dom0.worker import Worker

LINE_MAX: Final = 4096
CONNECTIONS_MAX: Final = 16
FDS_MAX: Final = 64  # a card has a tap for each pair of queues
INT_SIZE: Final = 4


class Client:
    """One connection: what it has sent of its next line, and the descriptors beside that."""

    __slots__ = ("fds", "received", "socket")

    def __init__(self, socket: _socket.socket) -> None:
        self.socket = socket
        self.received = bytearray()
        self.fds: list[int] = []

    def take_fd(self) -> int:
        """Take the descriptor that came with the line; raise ``BadInput`` if none did."""
        if not self.fds:
            raise BadInput("no socket came with that line")
        return self.fds.pop(0)

    def drop_fds(self) -> None:
        """Close what came and was not taken."""
        while self.fds:
            os.close(self.fds.pop())


class Control:
    """Serve the control socket of one worker."""

    def __init__(self, worker: Worker, fd: int) -> None:
        self._worker = worker
        self._listener = _socket.socket(fileno=fd)
        self._listener.setblocking(False)
        self._clients: dict[int, Client] = {}
        self._verbs: dict[str, Callable[[list[str], Client], str]] = {
            "status": self._status,
            "stats": self._stats,
            "resize": self._resize,
            "limit": self._limit,
            "connect": self._connect,
            "device-add": self._device_add,
            "device-remove": self._device_remove,
            "terminate": self._terminate,
        }
        worker.loop.watch(fd, self._accept)

    def _accept(self, _events: int) -> None:
        try:
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]
        except OSError:
            return
        socket = _socket.socket(fileno=fd)
        if len(self._clients) >= CONNECTIONS_MAX:
            socket.close()
            return
        socket.setblocking(False)
        self._clients[fd] = Client(socket)
        self._worker.loop.watch(fd, lambda _: self._receive(fd))

    def _receive(self, fd: int) -> None:
        client = self._clients[fd]
        try:
            space = _socket.CMSG_SPACE(FDS_MAX * INT_SIZE)
            data, ancillary, _, _ = client.socket.recvmsg(LINE_MAX, space, _socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        for level, kind, value in ancillary:
            if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
                client.fds += struct.unpack(f"{len(value) // INT_SIZE}i", value)
        client.received += data
        if not data or len(client.fds) > FDS_MAX:
            self._drop(fd)
            return
        *lines, rest = bytes(client.received).split(b"\n")
        client.received[:] = rest
        answers = [self._answer(line.decode("utf-8", "replace"), client) + "\n" for line in lines]
        answer = "".join(answers).encode()
        try:
            sent = client.socket.send(answer) if answer else 0
        except OSError:
            sent = 0
        # It does not read: half an answer would be a wrong one. Or it does not end its line.
        if sent < len(answer) or len(rest) > LINE_MAX:
            self._drop(fd)

    def _drop(self, fd: int) -> None:
        client = self._clients.pop(fd)
        self._worker.loop.unwatch(fd)
        client.drop_fds()
        client.socket.close()

    def _answer(self, line: str, client: Client) -> str:
        verb, *words = line.split() or [""]
        action = self._verbs.get(verb)
        if action is None:
            return f"error unknown verb {verb!r}"
        try:
            return action(words, client)
        except KvmpvError as error:
            return f"error {verb}: {' '.join(str(error).split())}"
        except (ValueError, IndexError):
            return f"error {verb}: wrong arguments"
        except Exception as error:  # one device's bug, and no reason to leave the others
            self._worker.log(f"{verb}: bug: {error!r}")
            return f"error {verb}: {error!r}"
        finally:
            client.drop_fds()

    # ---- verbs

    def _status(self, _words: list[str], _client: Client) -> str:
        slots = sorted(self._worker.slots.items())
        return "ok" + "".join(f" {number}={slot.kind},{slot.state}" for number, slot in slots)

    def _stats(self, _words: list[str], _client: Client) -> str:
        return "ok" + "".join(f" {key}={value}" for key, value in self._worker.stats().items())

    def _resize(self, words: list[str], _client: Client) -> str:
        return f"ok changed={'yes' if self._worker.resize(int(words[0])) else 'no'}"

    def _limit(self, words: list[str], _client: Client) -> str:
        pairs = [word.partition("=") for word in words[1:]]
        limits = {key: orders.unescape(value) for key, _, value in pairs}
        self._worker.limit(int(words[0]), limits)
        return "ok"

    def _connect(self, words: list[str], client: Client) -> str:
        slot = self._worker.slot(int(words[0]))
        socket = _socket.socket(fileno=client.take_fd())
        try:
            slot.connect(socket)
        except KvmpvError:
            socket.close()
            raise
        return "ok"

    def _device_add(self, words: list[str], client: Client) -> str:
        fd = client.take_fd()
        try:
            made = orders.device(words[0], fd)
        except (KvmpvError, IndexError):
            os.close(fd)
            raise
        if client.fds and made.kind == "net":
            made.options["tapfds"] = ":".join(map(str, client.fds))
            client.fds.clear()  # the card's own from here on
        self._worker.add(made)
        return "ok"

    def _device_remove(self, words: list[str], _client: Client) -> str:
        self._worker.remove(int(words[0]))
        return "ok"

    def _terminate(self, _words: list[str], _client: Client) -> str:
        self._worker.end("it was told to")
        return "ok"
