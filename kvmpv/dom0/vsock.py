"""virtio-vsock in user space: a guest's stream sockets meet unix sockets of the host.

Options: ``path`` and ``cid``. Who connects to the socket at ``path`` and sends a line of
``CONNECT <port>`` is connected to that port of the guest, and gets the line ``OK <port>``. A guest
that connects to port P of the host (cid 2) gets who listens at ``<path>_P``. See docs/vsock.md.
"""

from __future__ import annotations

import _socket
import os
import time

from kvmpv.dom0 import vsock_stream
from kvmpv.dom0.plain_queue import PLAIN_FEATURES, PlainQueue
from kvmpv.dom0.slot import ServedDevice
from kvmpv.dom0.vsock_greeting import Greetings
from kvmpv.dom0.vsock_stream import Stream
from kvmpv.errors import BadInput, HostError
from kvmpv.vhostuser import message
from kvmpv.virtio import spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from kvmpv.dom0.slot import Slot
    from kvmpv.vhostuser.device import Vring
    from kvmpv.vhostuser.shared import MemoryRegion
    from kvmpv.virtio.ring import Chain

HEADER: Final = spec.VSOCK_HDR
CID_HOST: Final = 2
TYPE_STREAM: Final = 1
EVENT_RESET: Final = bytes(4)  # VIRTIO_VSOCK_EVENT_TRANSPORT_RESET
RX, TX, EVENT = range(3)

STREAMS_MAX: Final = 256
WAITING_MAX: Final = 1024  # packets for a guest that gives no buffers; then it is not listened to
PACKET_MAX: Final = 64 << 10
TURN: Final = 32  # packets before others in this thread get their turn
FIRST_PORT: Final = 1 << 30  # of those that the host's side gets
BACKLOG: Final = 64
PATIENCE_NS: Final = 5_000_000_000


class VsockDevice(ServedDevice):
    """The socket device of one guest."""

    features = PLAIN_FEATURES | 1 << spec.VSOCK_F_STREAM
    protocol_features = message.PF_CONFIG | message.PF_INFLIGHT_SHMFD
    queue_count = 3

    def __init__(self, options: dict[str, str]) -> None:
        self.cid = int(options.get("cid", "3"))
        self.path = options.get("path", "")
        if not self.path or not 3 <= self.cid < 0xFFFFFFFF:
            raise BadInput(f"vsock: cid={self.cid} path={self.path!r}")
        self._listener = _listen(self.path)
        self._streams: dict[tuple[int, int], Stream] = {}
        self._waiting: list[bytes] = []  # packets without data, for the guest
        self._regions: list[MemoryRegion] = []
        self._queues: dict[int, PlainQueue] = {}
        self._features = 0
        self._next_port = FIRST_PORT
        self._resumed = False
        self._expecting = False
        self._counts = dict.fromkeys(("packets_in", "packets_out", "bytes_in", "bytes_out"), 0)

    # ---- the session

    def attach(self, slot: Slot) -> None:
        super().attach(slot)
        self._greetings = Greetings(slot, self._listener, self._connect)

    def config(self) -> bytes:
        return spec.VSOCK_CONFIG.pack(self.cid)

    def set_features(self, features: int) -> None:
        self._features = features

    def set_memory(self, regions: list[MemoryRegion]) -> None:
        self._regions = regions

    def start_queue(self, index: int, vring: Vring) -> None:
        serve = (self._serve_rx, self._serve_tx, self._serve_event)[index]
        queue = PlainQueue(self.slot, self._regions, vring, self._features, serve)
        self._queues[index] = queue
        # A worker that died took its connections with it: the guest is told, by an event.
        self._resumed |= bool(queue.ring.next_avail)
        queue.drop_recovered()
        queue.run()

    def stop_queue(self, index: int) -> int:
        queue = self._queues.pop(index, None)
        return queue.stop() if queue else 0

    def set_enabled(self, index: int, enabled: bool) -> None:
        queue = self._queues.get(index)
        if queue is not None:
            queue.run()

    def reset(self) -> None:
        for stream in list(self._streams.values()):
            self._forget(stream)
        self._waiting.clear()
        self._resumed = False

    def disconnected(self) -> None:
        self.reset()

    def close(self) -> None:
        self.reset()
        self._greetings.close()
        self.slot.forget(self._expire)
        self._listener.close()
        try:
            os.unlink(self.path)
        except OSError:
            pass

    def stats(self) -> dict[str, int]:
        return {"connections": len(self._streams), **self._counts}

    # ---- to the guest

    def _rx(self) -> PlainQueue | None:
        queue = self._queues.get(RX)
        return queue if queue is not None and queue.enabled else None

    def _packet(self, key: tuple[int, int], op: int, flags: int, credit: tuple[int, int]) -> bytes:
        guest, host = key
        return HEADER.pack(CID_HOST, self.cid, host, guest, 0, TYPE_STREAM, op, flags, *credit)

    def send(self, stream: Stream, op: int, flags: int = 0) -> None:
        """Send the guest a packet without data, as soon as it has a buffer for it."""
        self._queue_packet(self._packet(stream.key, op, flags, stream.own_credit()))

    def send_credit(self, stream: Stream) -> None:
        """Tell the guest that the host has taken what it sent."""
        if stream.state == vsock_stream.OPEN:
            self.send(stream, vsock_stream.OP_CREDIT_UPDATE)

    def _queue_packet(self, packet: bytes) -> None:
        self._waiting.append(packet)
        self._send_waiting()

    def _send_waiting(self) -> None:
        """Send what waits; what finds no buffer goes on waiting."""
        queue = self._rx()
        if queue is None:
            return
        done = 0
        while done < len(self._waiting):
            chain = queue.pop()
            if chain is None:
                break
            written = chain.write(self._waiting[done])
            # A buffer that is too small for a header costs the guest that packet.
            queue.push(chain, written if written == HEADER.size else 0)
            done += 1
        del self._waiting[:done]
        self._counts["packets_out"] += done
        queue.flush()

    def _serve_rx(self) -> None:
        """The guest has given buffers: for what waits, and for those who were starved."""
        was_full = len(self._waiting) >= WAITING_MAX
        self._send_waiting()
        for stream in list(self._streams.values()):
            if stream.starved:
                stream.starved = False
                stream.watch()
        if was_full and len(self._waiting) < WAITING_MAX and TX in self._queues:
            self._queues[TX].run()

    def read(self, stream: Stream) -> None:
        """Read from the host's side straight into the guest's buffers."""
        queue = self._rx()
        for _ in range(TURN):
            if self._waiting or queue is None:
                stream.starved = True
                break
            if not stream.credit:
                break
            chain = queue.pop()
            if chain is None:
                stream.starved = True
                break
            got = self._fill(queue, chain, stream)
            if got < 0:
                break
            if got == 0:
                queue.flush()
                stream.reached_end()
                return
        if queue is not None:
            queue.flush()

    def _fill(self, queue: PlainQueue, chain: Chain, stream: Stream) -> int:
        room = _beyond_header(chain.writable, stream.credit)
        if not room:
            queue.push(chain, 0)
            return 1
        got = stream.receive_into(room)
        if got <= 0:
            queue.unpop(chain)
            return got
        guest, host = stream.key
        credit = stream.own_credit()
        kind = (TYPE_STREAM, vsock_stream.OP_RW, 0)
        chain.write(HEADER.pack(CID_HOST, self.cid, host, guest, got, *kind, *credit))
        queue.push(chain, HEADER.size + got)
        self._counts["packets_out"] += 1
        self._counts["bytes_out"] += got
        return got

    # ---- from the guest

    def _serve_tx(self) -> None:
        queue = self._queues[TX]
        for _ in range(TURN):
            if len(self._waiting) >= WAITING_MAX:
                return  # until it takes those: see _serve_rx
            chain = queue.pop()
            if chain is None:
                return
            self._take(chain)
            queue.push(chain, 0)
        self.slot.call_at(0, self._again)

    def _again(self) -> None:
        if TX in self._queues:
            self._queues[TX].run()

    def _take(self, chain: Chain) -> None:
        head, data = _split(chain.readable)
        if len(head) < HEADER.size:
            return
        src, dst, guest, host, length, kind, op, flags, alloc, forwarded = HEADER.unpack(head)
        self._counts["packets_in"] += 1
        key = (guest, host)
        there = sum(len(piece) for piece in data)
        if src != self.cid or length > there or length > PACKET_MAX:
            return
        if dst != CID_HOST or kind != TYPE_STREAM:
            self._refuse(key, op)
            return
        stream = self._streams.get(key)
        if stream is None:
            self._take_first(key, op, alloc, forwarded)
            return
        stream.take_credit(alloc, forwarded)
        if op == vsock_stream.OP_RW:
            self._counts["bytes_in"] += length
            data = _first(data, length)
        self._take_next(stream, op, flags, data, length)
        if key in self._streams:
            stream.watch()

    def _take_first(self, key: tuple[int, int], op: int, alloc: int, forwarded: int) -> None:
        """A packet of no connection: it begins one, or is refused."""
        if op != vsock_stream.OP_REQUEST or len(self._streams) >= STREAMS_MAX:
            self._refuse(key, op)
            return
        socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        socket.setblocking(False)
        try:
            socket.connect(f"{self.path}_{key[1]}")
        except OSError:
            socket.close()
            self._refuse(key, op)
            return
        stream = self._streams[key] = Stream(self, key, socket, vsock_stream.OPEN)
        stream.take_credit(alloc, forwarded)
        self.send(stream, vsock_stream.OP_RESPONSE)
        stream.opened(b"")

    def _take_next(
        self, stream: Stream, op: int, flags: int, data: list[memoryview], length: int
    ) -> None:
        """A packet of a connection that there is."""
        if op == vsock_stream.OP_RST:
            self._forget(stream)
        elif op == vsock_stream.OP_SHUTDOWN and stream.state == vsock_stream.CLOSING:
            self.break_off(stream)
        elif op == vsock_stream.OP_SHUTDOWN:
            stream.shut(flags)
        elif op == vsock_stream.OP_RESPONSE and stream.state == vsock_stream.CONNECTING:
            stream.opened(f"OK {stream.key[1]}\n".encode())
        elif op == vsock_stream.OP_RW and stream.state != vsock_stream.CONNECTING:
            if stream.guest_shut & vsock_stream.SHUT_SEND or not stream.deliver(data, length):
                self.break_off(stream)
        elif op == vsock_stream.OP_CREDIT_REQUEST:
            self.send(stream, vsock_stream.OP_CREDIT_UPDATE)
        elif op != vsock_stream.OP_CREDIT_UPDATE:
            self.break_off(stream)

    def _refuse(self, key: tuple[int, int], op: int) -> None:
        if op != vsock_stream.OP_RST:
            self._queue_packet(self._packet(key, vsock_stream.OP_RST, 0, (0, 0)))

    def _serve_event(self) -> None:
        """Tell a driver whose connections died with a worker (5.10.6.7)."""
        if not self._resumed:
            return
        queue = self._queues[EVENT]
        chain = queue.pop()
        if chain is not None:
            queue.push(chain, chain.write(EVENT_RESET))
            self._resumed = False

    # ---- connections

    def _connect(self, socket: _socket.socket, port: int) -> None:
        """Ask the guest for a connection on behalf of somebody on the host."""
        key = (port, self._free_port(port))
        if len(self._streams) >= STREAMS_MAX or TX not in self._queues:
            socket.close()
            return
        stream = self._streams[key] = Stream(self, key, socket, vsock_stream.CONNECTING)
        self.send(stream, vsock_stream.OP_REQUEST)
        self.expect(stream)

    def _free_port(self, guest: int) -> int:
        while True:
            port = self._next_port
            self._next_port = port + 1 if port < 0x7FFFFFFF else FIRST_PORT
            if (guest, port) not in self._streams:
                return port

    def break_off(self, stream: Stream) -> None:
        """End a connection at once, on both sides."""
        self._queue_packet(self._packet(stream.key, vsock_stream.OP_RST, 0, (0, 0)))
        self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        stream.hang_up()
        self._streams.pop(stream.key, None)

    def expect(self, stream: Stream) -> None:
        """Break the connection off if the guest has not answered in a while."""
        stream.deadline_ns = time.monotonic_ns() + PATIENCE_NS
        if not self._expecting:
            self._expecting = True
            self.slot.call_at(stream.deadline_ns, self._expire)

    def _expire(self) -> None:
        self._expecting = False
        now = time.monotonic_ns()
        left = []
        for stream in list(self._streams.values()):
            if not stream.deadline_ns:
                continue
            if stream.deadline_ns <= now:
                self.break_off(stream)
            else:
                left.append(stream.deadline_ns)
        if left:
            self._expecting = True
            self.slot.call_at(min(left), self._expire)


def _listen(path: str) -> _socket.socket:
    """Listen at a path; one that a dead worker has left there is replaced."""
    socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    socket.setblocking(False)
    try:
        if _is_abandoned(path):
            os.unlink(path)
        mask = os.umask(0o077)
        try:
            socket.bind(path)
        finally:
            os.umask(mask)
        socket.listen(BACKLOG)
    except OSError as error:
        socket.close()
        raise HostError(f"vsock: cannot listen at {path}: {error.strerror}") from None
    return socket


def _is_abandoned(path: str) -> bool:
    probe = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        probe.connect(path)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    finally:
        probe.close()
    return False


def _split(pieces: list[memoryview]) -> tuple[bytes, list[memoryview]]:
    """Return a copy of a packet's header, and what follows it."""
    head = b""
    rest = []
    for piece in pieces:
        part = HEADER.size - len(head)
        head += bytes(piece[:part])
        if len(piece) > part:
            rest.append(piece[part:])
    return head, rest


def _first(pieces: list[memoryview], length: int) -> list[memoryview]:
    """Return the first bytes of some pieces."""
    found = []
    for piece in pieces:
        if not length:
            break
        found.append(piece[:length])
        length -= len(found[-1])
    return found


def _beyond_header(pieces: list[memoryview], length: int) -> list[memoryview]:
    """Return where up to that many bytes go behind a header; nothing if there is no room."""
    skip = HEADER.size
    rest = []
    for piece in pieces:
        if len(piece) > skip:
            rest.append(piece[skip:])
        skip = max(skip - len(piece), 0)
    return _first(rest, length)
