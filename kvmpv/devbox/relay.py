"""Carry the agent protocol between many clients and one agent.

A session's number is the client's on one side and the relay's own on the other; credit passes
through, so what is queued here stays within what the two ends have granted each other.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from kvmpv.agent import frames
from kvmpv.errors import AgentError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

_RECEIVE = 256 * 1024
# Clients are not read while this much waits for the agent, nor kept when this much waits for them.
_AGENT_FULL = 1 << 20
_CLIENT_FULL = 64 << 20


class Peer:
    """One connected stream: bytes on their way out, and a decoder for those that come in."""

    def __init__(self, sock: socket.socket, decoder: frames.Decoder) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.decoder = decoder
        self.gone = False
        self._out = bytearray()

    @property
    def waiting(self) -> int:
        """How many bytes wait for the stream to take them."""
        return len(self._out)

    def send(self, data: bytes) -> None:
        """Send what the stream takes and keep the rest."""
        self._out += data
        self.flush()

    def flush(self) -> None:
        """Send what the stream takes now."""
        try:
            while self._out:
                done = self.sock.send(memoryview(self._out)[:_RECEIVE])
                del self._out[:done]
        except BlockingIOError:
            pass
        except OSError:
            self.gone = True
            self._out.clear()

    def receive(self) -> list[tuple[int, int, int, bytes]]:
        """Read once and return the frames that are whole; raises AgentError on nonsense."""
        try:
            data = self.sock.recv(_RECEIVE)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            self.gone = True
            return []
        return self.decoder.feed(data)


class Client(Peer):
    """One client of the relay and the numbers of its sessions."""

    def __init__(self, sock: socket.socket) -> None:
        # A client's nonce is not known before it comes: the decoder learns it.
        super().__init__(sock, _Greeted())
        self.numbers: dict[int, int] = {}  # its own to the relay's

    @property
    def greeting(self) -> bytes:
        """What the client greeted with, to be sent back to it."""
        assert isinstance(self.decoder, _Greeted)
        return self.decoder.take_greeting()


class _Greeted(frames.Decoder):
    """A decoder for the agent's side: the stream begins with a greeting of the peer's choice."""

    __slots__ = ("_first", "_pending")

    def __init__(self) -> None:
        super().__init__()
        self._first = bytearray()
        self._pending = b""

    def take_greeting(self) -> bytes:
        pending, self._pending = self._pending, b""
        return pending

    def feed(self, data: bytes) -> list[tuple[int, int, int, bytes]]:
        if len(self._first) < frames.GREETING_SIZE:
            self._first += data
            if len(self._first) < frames.GREETING_SIZE:
                return []
            data = bytes(self._first[frames.GREETING_SIZE :])
            del self._first[frames.GREETING_SIZE :]
            if not self._first.startswith(frames.MAGIC):
                raise AgentError("a client does not speak the agent protocol")
            self._pending = bytes(self._first)
        return super().feed(data)


class Relay:
    """Route frames; ``control`` answers what clients ask the relay itself."""

    def __init__(
        self,
        agent: socket.socket,
        control: Callable[[Client, bytes], bytes],
        before_run: Callable[[], None] = lambda: None,
    ) -> None:
        nonce = os.urandom(frames.NONCE_SIZE)
        self.agent = Peer(agent, frames.Decoder(frames.MAGIC + nonce))
        self.agent.send(frames.MAGIC + nonce + frames.pack_hello())
        self.clients: list[Client] = []
        self.up = False
        self.failure = ""
        self._control = control
        self._before_run = before_run
        self._owners: dict[int, tuple[Client | None, int]] = {}  # relay's number to client's
        self._last = 0

    @property
    def running(self) -> int:
        """How many commands run."""
        return sum(len(client.numbers) for client in self.clients)

    @property
    def congested(self) -> bool:
        """Tell whether the agent takes so little that clients must wait."""
        return self.agent.waiting > _AGENT_FULL

    def add(self, sock: socket.socket) -> Client:
        """Take a client that has connected."""
        client = Client(sock)
        self.clients.append(client)
        return client

    def drop(self, client: Client) -> None:
        """Forget a client and end its commands."""
        self.clients.remove(client)
        for number in client.numbers.values():
            self._owners[number] = (None, 0)
            self.agent.send(frames.pack(frames.CLOSE, number))
        client.sock.close()

    def ping(self) -> None:
        """Ask the agent for a sign of life."""
        self.agent.send(frames.pack(frames.PING, 0, b"beat"))

    def refresh(self, files: list[str]) -> None:
        """Have the agent look its live folders up again, before what is sent next.

        The content of ``files`` is to be read anew, even if they look the same.
        """
        payload = b""
        for path in files:
            name = os.fsencode(path) + b"\0"
            if len(payload) + len(name) > frames.MAX_PAYLOAD:
                self.agent.send(frames.pack(frames.REFRESH, 0, payload))
                payload = b""
            payload += name
        self.agent.send(frames.pack(frames.REFRESH, 0, payload))

    def from_agent(self) -> bool:
        """Handle what the agent sent; return whether it sent anything."""
        before = self.agent.gone
        received = self.agent.receive()
        for kind, stream, number, payload in received:
            if number:
                self._to_client(kind, stream, number, payload)
            elif kind == frames.HELLO:
                self.up = True
            elif kind == frames.ERROR:
                self.failure = payload[4:].decode("utf-8", "replace")
        return not self.agent.gone and not before

    def from_client(self, client: Client) -> None:
        """Handle what a client sent."""
        try:
            received = client.receive()
            greeting = client.greeting
            if greeting:
                client.send(greeting + frames.pack_hello())
            for kind, stream, number, payload in received:
                if number:
                    self._to_agent(client, kind, stream, number, payload)
                else:
                    self._from_client_itself(client, kind, payload)
        except AgentError:
            client.gone = True

    def sweep(self) -> int:
        """Drop the clients that are gone, or that take nothing; return how many."""
        gone = [c for c in self.clients if c.gone or c.waiting > _CLIENT_FULL]
        for client in gone:
            self.drop(client)
        return len(gone)

    def lost(self, text: str) -> None:
        """Tell all clients that the agent is lost."""
        payload = frames.ERROR_LOST.to_bytes(4, "little") + text.encode()
        frame = frames.pack(frames.ERROR, 0, payload)
        for client in self.clients:
            client.send(frame)

    def _to_client(self, kind: int, stream: int, number: int, payload: bytes) -> None:
        client, theirs = self._owners.get(number, (None, 0))
        if kind == frames.EXIT:
            self._owners.pop(number, None)
            if client is not None:
                client.numbers.pop(theirs, None)
        if client is not None:
            client.send(frames.pack(kind, theirs, payload, stream))

    def _to_agent(self, client: Client, kind: int, stream: int, number: int, data: bytes) -> None:
        if kind == frames.RUN:
            if number in client.numbers:
                raise AgentError("a session's number is in use")
            self._before_run()
            client.numbers[number] = self._new_number(client, number)
        ours = client.numbers.get(number)
        if ours is not None:
            self.agent.send(frames.pack(kind, ours, data, stream))

    def _new_number(self, client: Client, number: int) -> int:
        if len(self._owners) > 60000:
            raise AgentError("too many sessions")
        while True:
            self._last = self._last % 65535 + 1
            if self._last not in self._owners:
                self._owners[self._last] = (client, number)
                return self._last

    def _from_client_itself(self, client: Client, kind: int, payload: bytes) -> None:
        if kind == frames.PING:
            client.send(frames.pack(frames.PONG, 0, payload))
        elif kind == frames.RELAY:
            client.send(frames.pack(frames.RELAY, 0, self._control(client, payload)))
        elif kind not in (frames.HELLO, frames.PONG):
            raise AgentError("a client asked for what only the box's owner may")
