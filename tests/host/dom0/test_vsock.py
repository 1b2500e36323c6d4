"""virtio-vsock: connections both ways, credit, ends, and guests that break the rules."""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
from typing import TYPE_CHECKING

import pytest

from kvmpv.vhostuser.frontend import Frontend
from kvmpv.virtio.spec import VSOCK_HDR
from tests.host.dom0.workers import Worker, option
from tests.unit.vhostuser.driver import Driver, DriverRing, readable
from tests.unit.vhostuser.peer import raw
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CID = 42
REQUEST, RESPONSE, RST, SHUTDOWN, RW, UPDATE, ASK = range(1, 8)
BUFFER = 128 << 10
FEATURES = 1 << 32 | 1


class Guest:
    """The guest's side of the device, packet by packet."""

    def __init__(self, frontend: Frontend, buffers: int = 16, events: int = 0) -> None:
        self.driver = Driver(frontend, [64, 64, 8], features=FEATURES | events)
        self.rx, self.tx, self.events = self.driver.rings
        self.memory = self.driver.memory
        self.posted: dict[int, int] = {}
        self.alloc = 64 << 10
        self.driver.start()
        for _ in range(buffers):
            self.give()

    def give(self, size: int = 4096) -> None:
        """Give the device a buffer: a header's, and one for data."""
        at = self.memory.take(44 + size)
        self.posted[self.rx.post((at, 44, True), (at + 44, size, True))] = at

    def take(self, seconds: float = 5) -> tuple[tuple[int, ...], bytes]:
        """Return the next packet: its header and its data."""
        head, written = self.rx.wait(seconds)
        at = self.posted.pop(head)
        fields = VSOCK_HDR.unpack_from(self.memory.map, at)
        assert fields[:2] == (2, CID)
        assert written == 44 + fields[4]
        data = self.memory.map[at + 44 : at + 44 + fields[4]]
        self.posted[self.rx.post((at, 44, True), (at + 44, 4096, True))] = at
        return fields, data

    def silent(self) -> bool:
        """Say whether nothing has come."""
        return self.rx.used_index == self.rx.seen

    def quiet(self, ring: DriverRing) -> bool:
        """Say whether nothing comes for a while."""
        while readable(ring.call, 0.1):
            os.eventfd_read(ring.call)
        return ring.used_index == ring.seen

    def send(
        self,
        guest: int,
        host: int,
        op: int,
        data: bytes = b"",
        *,
        flags: int = 0,
        forwarded: int = 0,
        head: bytes | None = None,
    ) -> None:
        """Send a packet and wait until the device has taken it."""
        whole = head or VSOCK_HDR.pack(
            CID, 2, guest, host, len(data), 1, op, flags, self.alloc, forwarded
        )
        before = self.memory.next
        pieces = [(self.memory.put(whole), len(whole), False)]
        if data:
            pieces.append((self.memory.put(data), len(data), False))
        self.tx.post(*pieces)
        self.tx.wait()
        self.memory.next = before

    def close(self) -> None:
        self.driver.close()


def ops(fields: tuple[int, ...]) -> tuple[int, int, int]:
    """Return a packet's host port, guest port and operation."""
    return fields[2], fields[3], fields[6]


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    with Worker(tmp_path, f"vsock,cid={CID},{option('path', tmp_path / 'v,s')}") as made:
        yield made


@pytest.fixture
def guest(worker: Worker) -> Iterator[Guest]:
    made = Guest(worker.frontend())
    yield made
    made.close()


def listen(tmp_path: Path, port: int) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind(f"{tmp_path}/v,s_{port}")
    made.listen()
    made.settimeout(5)
    return made


def from_guest(tmp_path: Path, guest: Guest, port: int = 80) -> socket.socket:
    """Connect from the guest's port 1000 to the host's."""
    listener = listen(tmp_path, port)
    guest.send(1000, port, REQUEST)
    host, _ = listener.accept()
    listener.close()
    host.settimeout(5)
    fields, _ = guest.take()
    assert ops(fields) == (port, 1000, RESPONSE)
    assert fields[8:] == (BUFFER, 0)
    return host


def from_host(tmp_path: Path, guest: Guest, port: int = 22) -> tuple[socket.socket, int]:
    """Connect from the host to the guest's port; return the socket and the host's port."""
    host = socket.socket(socket.AF_UNIX)
    host.settimeout(5)
    host.connect(f"{tmp_path}/v,s")
    host.sendall(f"CONNECT {port}\n".encode())
    fields, _ = guest.take()
    given, asked, op = ops(fields)
    assert (asked, op) == (port, REQUEST)
    guest.send(port, given, RESPONSE)
    assert host.recv(100) == f"OK {given}\n".encode()
    return host, given


def test_the_guest_learns_its_address(guest: Guest) -> None:
    assert struct.unpack("<Q", guest.driver.frontend.get_config(0, 8)) == (CID,)


@pytest.mark.parametrize("events", [0, 1 << 29])
def test_a_guest_connects_to_the_host(events: int, worker: Worker, tmp_path: Path) -> None:
    guest = Guest(worker.frontend(), events=events)
    host = from_guest(tmp_path, guest)
    for number in range(5):
        guest.send(1000, 80, RW, b"from the guest %d" % number)
        assert host.recv(100) == b"from the guest %d" % number
        host.sendall(b"from the host %d" % number)
        fields, data = guest.take()
        assert ops(fields) == (80, 1000, RW)
        assert data == b"from the host %d" % number
    guest.send(1000, 80, SHUTDOWN, flags=3)
    assert ops(guest.take()[0]) == (80, 1000, RST)
    assert host.recv(1) == b""
    host.close()
    guest.close()


def test_the_host_connects_to_a_guest(guest: Guest, tmp_path: Path, worker: Worker) -> None:
    host, port = from_host(tmp_path, guest)
    host.sendall(b"hello")
    assert guest.take()[1] == b"hello"
    host.close()
    fields, _ = guest.take()
    assert (ops(fields), fields[7]) == ((port, 22, SHUTDOWN), 3)
    guest.send(22, port, RST)
    until(lambda: worker.stats()["0.connections"] == 0)


def test_what_follows_the_greeting_is_the_guests(guest: Guest, tmp_path: Path) -> None:
    host = socket.socket(socket.AF_UNIX)
    host.connect(f"{tmp_path}/v,s")
    for piece in (b"CON", b"NECT 5", b"\nalready"):
        assert guest.silent()
        host.sendall(piece)
    (_, _, given, *_), _ = guest.take()
    guest.send(5, given, RESPONSE)
    assert guest.take()[1] == b"already"
    host.close()


@pytest.mark.parametrize("line", [b"HELLO\n", b"CONNECT x\n", b"CONNECT 4294967296\n", b"C" * 40])
def test_who_does_not_say_a_port_is_hung_up_on(line: bytes, guest: Guest, tmp_path: Path) -> None:
    host = socket.socket(socket.AF_UNIX)
    host.settimeout(5)
    host.connect(f"{tmp_path}/v,s")
    host.sendall(line)
    try:
        assert host.recv(10) == b""
    except ConnectionResetError:
        pass
    host.close()
    assert guest.silent()


def test_a_guest_that_refuses_is_told_to_the_host(guest: Guest, tmp_path: Path) -> None:
    host = socket.socket(socket.AF_UNIX)
    host.settimeout(5)
    host.connect(f"{tmp_path}/v,s")
    host.sendall(b"CONNECT 9\n")
    given = guest.take()[0][2]
    guest.send(9, given, RST)
    assert host.recv(10) == b""
    host.close()


def test_nobody_listening_on_the_host_is_refused(guest: Guest) -> None:
    guest.send(1000, 81, REQUEST)
    assert ops(guest.take()[0]) == (81, 1000, RST)


def test_halves_close_one_by_one(guest: Guest, tmp_path: Path) -> None:
    host = from_guest(tmp_path, guest)
    guest.send(1000, 80, RW, b"last")
    guest.send(1000, 80, SHUTDOWN, flags=2)
    assert host.recv(100) == b"last"
    assert host.recv(100) == b""
    host.sendall(b"still here")
    assert guest.take()[1] == b"still here"
    host.shutdown(socket.SHUT_WR)
    fields, _ = guest.take()
    assert fields[6:8] == (SHUTDOWN, 3)
    guest.send(1000, 80, RST)
    host.close()


def test_the_hosts_half_closes_first(guest: Guest, tmp_path: Path) -> None:
    host = from_guest(tmp_path, guest)
    host.sendall(b"last")
    host.shutdown(socket.SHUT_WR)
    assert guest.take()[1] == b"last"
    fields, _ = guest.take()
    assert fields[6:8] == (SHUTDOWN, 2)
    guest.send(1000, 80, RW, b"more")
    assert host.recv(100) == b"more"
    host.close()
    fields, _ = guest.take()
    assert fields[6:8] == (SHUTDOWN, 3)


def test_data_waits_for_the_guests_credit(guest: Guest, tmp_path: Path) -> None:
    guest.alloc = 6000
    host = from_guest(tmp_path, guest)
    host.sendall(bytes(10000))
    assert [len(guest.take()[1]) for _ in range(2)] == [4096, 1904]
    assert guest.quiet(guest.rx)
    guest.send(1000, 80, UPDATE, forwarded=5000)
    assert len(guest.take()[1]) == 4000
    host.close()


def test_data_waits_for_the_guests_buffers(worker: Worker, tmp_path: Path) -> None:
    guest = Guest(worker.frontend(), buffers=2)
    host = from_guest(tmp_path, guest)
    host.sendall(bytes(range(250)) * 80)
    got = b"".join(guest.take()[1] for _ in range(5))
    assert got == bytes(range(250)) * 80
    host.close()
    guest.close()


def test_data_waits_for_the_host_and_the_guest_learns_of_it(
    guest: Guest, tmp_path: Path, worker: Worker
) -> None:
    host = from_guest(tmp_path, guest)
    host.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sent, total, forwarded = os.urandom(16 << 10), b"", 0
    while len(total) + len(sent) - forwarded <= BUFFER:
        guest.send(1000, 80, RW, sent)
        total += sent
        while not guest.silent():
            forwarded = guest.take()[0][9]
    assert len(total) >= BUFFER
    got = b""
    while len(got) < len(total):
        got += host.recv(1 << 20)
    assert got == total
    guest.send(1000, 80, ASK)
    while forwarded != len(total):
        forwarded = guest.take()[0][9]
    assert worker.stats()["0.bytes_in"] == len(total)
    host.close()


def test_a_guest_that_ignores_its_credit_is_broken_off(guest: Guest, tmp_path: Path) -> None:
    host = from_guest(tmp_path, guest)
    for _ in range(20):
        guest.send(1000, 80, RW, bytes(60000))
        if not guest.silent() and guest.take()[0][6] == RST:
            break
    else:
        raise AssertionError("never broken off")
    host.close()


@pytest.mark.parametrize(
    ("head", "answered"),
    [
        (VSOCK_HDR.pack(CID, 3, 1, 2, 0, 1, RW, 0, 0, 0), True),  # to another guest
        (VSOCK_HDR.pack(CID, 2, 1, 2, 0, 2, REQUEST, 0, 0, 0), True),  # SEQPACKET
        (VSOCK_HDR.pack(CID, 2, 1, 2, 0, 1, 77, 0, 0, 0), True),  # no operation
        (VSOCK_HDR.pack(CID, 2, 1, 2, 0, 1, RESPONSE, 0, 0, 0), True),
        (VSOCK_HDR.pack(CID, 2, 1, 2, 0, 1, RST, 0, 0, 0), False),  # RST is never answered
        (VSOCK_HDR.pack(7, 2, 1, 2, 0, 1, REQUEST, 0, 0, 0), False),  # in another's name
        (VSOCK_HDR.pack(CID, 2, 1, 2, 5, 1, RW, 0, 0, 0), False),  # data that is not there
        (VSOCK_HDR.pack(CID, 2, 1, 2, 0xFFFFFFFF, 1, RW, 0, 0, 0), False),
        (VSOCK_HDR.pack(CID, 2, 1, 2, 0, 1, RW, 0, 0, 0)[:43], False),
        (b"x", False),
    ],
)
def test_packets_that_cannot_be_are_refused_or_dropped(
    head: bytes, answered: bool, guest: Guest
) -> None:
    guest.send(1, 2, 0, head=head)
    if answered:
        assert guest.take()[0][6] == RST
    guest.send(5, 6, RW)
    assert ops(guest.take()[0]) == (6, 5, RST)


def test_a_guest_that_takes_no_answers_is_not_listened_to(worker: Worker) -> None:
    guest = Guest(worker.frontend(), buffers=0)
    for _ in range(1024):
        guest.send(1, 2, RW)
    head = VSOCK_HDR.pack(CID, 2, 1, 2, 0, 1, RW, 0, 0, 0)
    guest.tx.post((guest.memory.put(head), 44, False))
    assert guest.quiet(guest.tx)
    guest.give()
    guest.tx.wait()
    guest.close()


def test_buffers_too_small_for_a_header_cost_the_guest_its_packets(
    worker: Worker, tmp_path: Path
) -> None:
    guest = Guest(worker.frontend(), buffers=0)
    at = guest.memory.take(64)
    guest.rx.post((at, 20, True))
    guest.send(1, 2, RW)
    assert guest.rx.wait()[1] == 0
    guest.close()


def test_connections_end_with_their_driver(guest: Guest, tmp_path: Path, worker: Worker) -> None:
    host = from_guest(tmp_path, guest)
    guest.driver.frontend.reset_device()
    assert host.recv(1) == b""
    host.close()
    assert worker.stats()["0.connections"] == 0


def test_after_a_workers_death_the_guest_is_told(tmp_path: Path) -> None:
    orders = f"vsock,cid={CID},{option('path', tmp_path / 'v,s')}"
    with Worker(tmp_path, orders) as first:
        guest = Guest(first.frontend())
        host = from_guest(tmp_path, guest)
        first.process.kill()
        first.wait()
        assert host.recv(1) == b""
        host.close()
    with Worker(tmp_path, orders, restart=1) as second:
        frontend = second.frontend()
        frontend.negotiate()
        frontend.set_features(frontend.features & (FEATURES | 1 << 30))
        frontend.set_mem_table(guest.memory.table())
        for index, ring in enumerate(guest.driver.rings):
            ring.give_to(frontend, index, ring.used_index)
        at = guest.memory.put(b"\xff" * 8)
        guest.events.post((at, 8, True))
        assert guest.events.wait()[1] == 4
        assert guest.memory.map[at : at + 8] == bytes(4) + b"\xff" * 4
        (tmp_path / "v,s_80").unlink()
        guest.driver.frontend.close()
        from_guest(tmp_path, guest).close()
        frontend.close()


def test_a_path_that_is_taken_is_refused(tmp_path: Path) -> None:
    taken = socket.socket(socket.AF_UNIX)
    taken.bind(f"{tmp_path}/v,s")
    taken.listen()
    with Worker(tmp_path, f"vsock,{option('path', tmp_path / 'v,s')}") as worker:
        assert worker.ready.startswith("error 0 vsock: cannot listen at")
        assert worker.wait() == 2
    taken.close()


def test_much_goes_both_ways_at_once(guest: Guest, tmp_path: Path) -> None:
    host = from_guest(tmp_path, guest)
    data = os.urandom(1 << 20)
    echoed = b""

    def echo() -> None:
        while piece := host.recv(1 << 16):
            host.sendall(piece)

    thread = threading.Thread(target=echo)
    thread.start()
    sent = taken = 0
    while len(echoed) < len(data):
        if sent < len(data) and sent - taken < 48 << 10:
            guest.send(1000, 80, RW, data[sent : sent + 8192], forwarded=len(echoed))
            sent += 8192
        while not guest.silent():
            fields, piece = guest.take()
            echoed, taken = echoed + piece, fields[9]
        if sent == len(data) or sent - taken >= 48 << 10:
            guest.send(1000, 80, UPDATE, forwarded=len(echoed))
    assert echoed == data
    guest.send(1000, 80, SHUTDOWN, flags=3)
    thread.join(5)
    host.close()


def test_a_session_that_ends_closes_the_connections(worker: Worker, tmp_path: Path) -> None:
    guest = Guest(worker.frontend())
    host = from_guest(tmp_path, guest)
    guest.close()
    assert host.recv(1) == b""
    host.close()
    ours, theirs = socket.socketpair()
    assert worker.ask("connect 0", theirs.fileno()) == "ok"
    theirs.close()
    (tmp_path / "v,s_80").unlink()
    again = Guest(Frontend(raw(ours)))
    from_guest(tmp_path, again).close()
    again.close()


def test_no_packets_bring_it_down(guest: Guest, worker: Worker, tmp_path: Path) -> None:
    chance = random.Random(19)
    host = from_guest(tmp_path, guest)
    for number in range(600):
        port = chance.choice([1000, 1000, 1000, 1, 0xFFFFFFFF])
        to = chance.choice([80, 80, 80, 81, 0])
        length = chance.choice([0, 0, 1, 100, 5000, 0xFFFFFFFF])
        data = os.urandom(chance.choice([0, 1, 100, 5000]))
        head = VSOCK_HDR.pack(
            *(chance.choice([CID, CID, CID, 0, 2**64 - 1]), chance.choice([2, 2, 2, CID, 0])),
            *(port, to, chance.choice([length, len(data)]), chance.choice([1, 1, 1, 2, 0])),
            *(chance.randrange(9), chance.choice([0, 1, 2, 3, 0xFFFFFFFF])),
            *(chance.choice([0, 1000, 2**32 - 1]), chance.choice([0, 5000, 2**32 - 1])),
        )
        guest.send(port, to, 0, data, head=head[: chance.choice([44, 44, 44, 43, 0])] or b"?")
        while not guest.silent():
            guest.take()
        if number % 50 == 0:
            host.close()
            (tmp_path / "v,s_80").unlink()
            guest.send(1000, 80, RST)
            until(lambda: worker.log or worker.stats()["0.connections"] == 0)
            assert worker.log == ""
            while not guest.silent():
                guest.take()
            host = from_guest(tmp_path, guest)
    host.close()
    assert worker.log == ""
