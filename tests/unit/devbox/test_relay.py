"""The relay between several clients and one agent, which these tests play."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmpv.agent import frames
from kvmpv.devbox.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Iterator

    Frame = tuple[int, int, int, bytes]


class Line:
    """A relay, its agent's end and its clients' ends."""

    def __init__(self) -> None:
        self.agent, theirs = socket.socketpair()
        self.refreshed = 0
        self.relay = Relay(theirs, lambda _client, asked: b"told " + asked, self.refresh)
        greeting = self.agent.recv(frames.GREETING_SIZE)
        self.from_relay = frames.Decoder()
        self.agent.sendall(greeting + frames.pack_hello())
        self.clients: list[tuple[socket.socket, frames.Decoder]] = []
        self.relay.from_agent()
        assert [frame[0] for frame in self.at_agent()] == [frames.HELLO]

    def refresh(self) -> None:
        self.refreshed += 1

    def client(self) -> int:
        ours, theirs = socket.socketpair()
        self.relay.add(theirs)
        nonce = bytes([len(self.clients)]) * 16
        self.clients.append((ours, frames.Decoder(frames.MAGIC + nonce)))
        self.say(len(self.clients) - 1, frames.MAGIC + nonce + frames.pack_hello())
        return len(self.clients) - 1

    def say(self, index: int, data: bytes) -> None:
        self.clients[index][0].sendall(data)
        self.relay.from_client(self.relay.clients[index])

    def at_client(self, index: int) -> list[Frame]:
        sock, decoder = self.clients[index]
        return read(sock, decoder)

    def at_agent(self) -> list[Frame]:
        return read(self.agent, self.from_relay)

    def answer(self, data: bytes) -> None:
        self.agent.sendall(data)
        self.relay.from_agent()

    def close(self) -> None:
        self.agent.close()
        self.relay.agent.sock.close()
        for sock, _ in self.clients:
            sock.close()
        for client in self.relay.clients:
            client.sock.close()


def read(sock: socket.socket, decoder: frames.Decoder) -> list[Frame]:
    sock.settimeout(0.01)
    try:
        return decoder.feed(sock.recv(1 << 20))
    except TimeoutError:
        return []


@pytest.fixture
def line() -> Iterator[Line]:
    found = Line()
    yield found
    found.close()


def run(number: int) -> bytes:
    return frames.pack_run(number, ["x"], flags=0, window=(1, 1))


def test_a_client_is_greeted(line: Line) -> None:
    index = line.client()
    assert [frame[0] for frame in line.at_client(index)] == [frames.HELLO]
    assert line.relay.up


def test_the_same_number_of_two_clients_stays_apart(line: Line) -> None:
    one, two = line.client(), line.client()
    line.say(one, run(1))
    line.say(two, run(1))
    first, second = (frame[2] for frame in line.at_agent())
    assert first != second
    line.answer(frames.pack_exit(second, frames.EXIT_CODE, 2))
    line.answer(frames.pack_exit(first, frames.EXIT_CODE, 1))
    assert frames.unpack_exit(line.at_client(one)[-1][3]) == (0, 1)
    assert frames.unpack_exit(line.at_client(two)[-1][3]) == (0, 2)
    assert line.relay.running == 0


def test_the_box_looks_again_before_each_command(line: Line) -> None:
    one = line.client()
    line.say(one, run(1) + run(2))
    assert line.refreshed == 2


def test_the_commands_of_a_client_that_goes_are_closed(line: Line) -> None:
    one = line.client()
    line.say(one, run(1))
    number = line.at_agent()[0][2]
    line.clients[one][0].close()
    line.relay.from_client(line.relay.clients[one])
    line.relay.sweep()
    assert [(frame[0], frame[2]) for frame in line.at_agent()] == [(frames.CLOSE, number)]
    line.answer(frames.pack_exit(number, frames.EXIT_CLOSED, 0))
    assert line.relay.running == 0


def test_a_client_asks_the_relay_itself(line: Line) -> None:
    one = line.client()
    line.say(one, frames.pack(frames.RELAY, 0, b"me"))
    assert line.at_client(one)[-1][3] == b"told me"


def test_no_client_ends_the_machine(line: Line) -> None:
    one = line.client()
    line.say(one, frames.pack(frames.POWER, 0, b"\1"))
    assert line.relay.sweep() == 1
    assert line.at_agent() == []


def test_all_clients_hear_of_a_loss(line: Line) -> None:
    indices = [line.client(), line.client()]
    line.relay.lost("burnt")
    for index in indices:
        kind, _, _, payload = line.at_client(index)[-1]
        assert (kind, payload[4:]) == (frames.ERROR, b"burnt")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400), st.booleans())
def test_a_hostile_client_is_only_dropped(junk: bytes, greets: bool) -> None:
    line = Line()
    good = line.client()
    bad = line.client()
    line.say(bad, junk if greets else bytes(32) + junk)
    line.relay.sweep()
    line.say(good, run(7))
    assert frames.RUN in [frame[0] for frame in line.at_agent()]
    line.close()
