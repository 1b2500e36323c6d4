"""The client against an agent that these tests play."""

from __future__ import annotations

import _thread
import os
import socket
from typing import TYPE_CHECKING

import pytest

from kvmpv.agent import frames
from kvmpv.agent.client import Connection
from kvmpv.errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Frame = tuple[int, int, int, bytes]


class Agent:
    """The other end: reads what the client sends, answers what a test tells it to."""

    def __init__(self) -> None:
        self.sock, theirs = socket.socketpair()
        self.client = Connection(theirs)
        self.greeting = self._exactly(frames.GREETING_SIZE)
        self.decoder = frames.Decoder()
        self.got: list[Frame] = []

    def welcome(self) -> None:
        self.sock.sendall(self.greeting + frames.pack_hello())

    def expect(self, kind: int) -> Frame:
        while True:
            for index, frame in enumerate(self.got):
                if frame[0] == kind:
                    return self.got.pop(index)
            data = self.sock.recv(65536)
            assert data, f"the client went away before a frame {kind:#x}"
            self.got += self.decoder.feed(data)

    def plays(self, part: Callable[[], object]) -> None:
        _thread.start_new_thread(part, ())

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            data += self.sock.recv(count - len(data))
        return data


@pytest.fixture
def agent() -> Iterator[Agent]:
    played = Agent()
    yield played
    played.client.close()
    played.sock.close()


def answer(agent: Agent, number: int, out: bytes, status: int) -> None:
    agent.sock.sendall(
        frames.pack_data(number, frames.STDOUT, out)
        + frames.pack_exit(number, frames.EXIT_CODE, status)
    )


def test_a_command_is_sent_before_the_agent_is_there(agent: Agent) -> None:
    agent.client.start(["true"])
    number = agent.expect(frames.RUN)[2]
    assert number == 1
    assert agent.expect(frames.HELLO)


def test_output_and_status_come_back(agent: Agent) -> None:
    def part() -> None:
        agent.welcome()
        answer(agent, agent.expect(frames.RUN)[2], b"hello", 7)

    agent.plays(part)
    assert agent.client.capture(["x"]) == (7, b"hello", b"")


@pytest.mark.parametrize(
    ("kind", "value", "status"),
    [
        (frames.EXIT_CODE, 0, 0),
        (frames.EXIT_SIGNAL, 15, 143),
        (frames.EXIT_NOT_STARTED, 2, 127),
        (frames.EXIT_NOT_STARTED, 13, 126),
    ],
)
def test_status_is_counted_as_shells_count(
    agent: Agent, kind: int, value: int, status: int
) -> None:
    def part() -> None:
        agent.welcome()
        agent.sock.sendall(frames.pack_exit(agent.expect(frames.RUN)[2], kind, value))

    agent.plays(part)
    assert agent.client.capture(["x"])[0] == status


def test_input_waits_for_credit(agent: Agent) -> None:
    taken = bytearray()

    def part() -> None:
        agent.welcome()
        number = agent.expect(frames.RUN)[2]
        for _ in range(4):
            agent.sock.sendall(frames.pack_word(frames.CREDIT, number, 3))
            taken.extend(agent.expect(frames.DATA)[3])
        agent.expect(frames.EOF)
        answer(agent, number, b"", 0)

    agent.plays(part)
    assert agent.client.capture(["x"], data=b"abcdefghijkl")[0] == 0
    assert taken == b"abcdefghijkl"


def test_credit_is_granted_only_for_what_was_taken(agent: Agent) -> None:
    granted = []
    window = agent.client.start(["x"]).WINDOW

    def part() -> None:
        agent.welcome()
        agent.expect(frames.RUN)
        agent.expect(frames.CLOSE)
        number = agent.expect(frames.RUN)[2]
        agent.sock.sendall(frames.pack_data(number, frames.STDOUT, bytes(window)))
        left = window
        while left:
            count = frames.unpack_word(agent.expect(frames.CREDIT)[3])
            granted.append(count)
            left -= count
        answer(agent, number, b"end", 0)

    agent.client.send(frames.pack(frames.CLOSE, 1))
    agent.plays(part)
    assert len(agent.client.capture(["y"])[1]) == window + 3
    assert sum(granted) == window


def test_threads_share_the_connection(agent: Agent) -> None:
    count = 8
    done: list[tuple[int, bytes, bytes]] = []

    def part() -> None:
        agent.welcome()
        numbers = [agent.expect(frames.RUN)[2] for _ in range(count)]
        for number in reversed(numbers):
            answer(agent, number, b"%d" % number, number)

    agent.plays(part)
    left = _thread.allocate_lock()
    finished = os.eventfd(0)

    def one() -> None:
        got = agent.client.capture(["x"])
        with left:
            done.append(got)
        os.eventfd_write(finished, 1)

    for _ in range(count):
        _thread.start_new_thread(one, ())
    total = 0
    while total < count:
        total += os.eventfd_read(finished)
    os.close(finished)
    assert sorted(done) == [(n, b"%d" % n, b"") for n in range(1, count + 1)]


def test_the_agents_going_away_is_an_error_of_its_own(agent: Agent) -> None:
    def part() -> None:
        agent.welcome()
        number = agent.expect(frames.RUN)[2]
        agent.sock.sendall(frames.pack_data(number, frames.STDOUT, b"half"))
        agent.sock.shutdown(socket.SHUT_RDWR)

    agent.plays(part)
    with pytest.raises(AgentError, match="gone away"):
        agent.client.capture(["x"])


def test_what_the_agent_says_before_it_goes_is_the_reason(agent: Agent) -> None:
    agent.welcome()
    payload = frames.ERROR_LOST.to_bytes(4, "little") + b"it burnt"
    agent.sock.sendall(frames.pack(frames.ERROR, 0, payload))
    with pytest.raises(AgentError, match="it burnt"):
        agent.client.capture(["x"])


def test_another_version_is_refused(agent: Agent) -> None:
    agent.sock.sendall(agent.greeting + frames.pack(frames.HELLO, 0, b"\2\0\0\0" + bytes(12)))
    with pytest.raises(AgentError, match="version 2"):
        agent.client.ping(1)


def test_a_silent_agent_does_not_hold_a_ping(agent: Agent) -> None:
    agent.welcome()
    with pytest.raises(AgentError, match="did not answer"):
        agent.client.ping(0.05)


def test_output_that_nobody_takes_is_refused(agent: Agent) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)

    def part() -> None:
        agent.welcome()
        number = agent.expect(frames.RUN)[2]
        agent.sock.sendall(frames.pack_data(number, frames.STDOUT, b"x"))
        assert agent.expect(frames.EOF)[1] == frames.STDOUT
        answer(agent, number, b"", 141)

    agent.plays(part)
    assert agent.client.run(["x"], stdout=write_end) == 141
    os.close(write_end)


def test_an_abandoned_command_is_closed(agent: Agent) -> None:
    session = agent.client.start(["x"])

    class Stop(Exception):
        pass

    def stop(*_: object) -> list[tuple[int, int]]:
        raise Stop

    session.poll_once = stop  # type: ignore[method-assign, assignment]
    with pytest.raises(Stop):
        session.wait()
    assert agent.expect(frames.CLOSE)[2] == session.id
