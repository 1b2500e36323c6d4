"""The control socket: the document and the code agree, and no client can do harm."""

from __future__ import annotations

import array
import os
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpv import abi
from kvmpv.errors import BadInput
from kvmpv.vmm import control as module
from kvmpv.vmm.control import Control

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kvmpv.vmm.main import Domain

DOCUMENT = (Path(__file__).parents[3] / "docs/control.md").read_text()


class FakeMachine:
    """A machine that can be paused."""

    def __init__(self) -> None:
        self.paused = False
        self.processors = {0: type("Processor", (), {"up": True})()}

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False


class FakeDevices:
    """A domain's devices: 0 is there, and 1 can be added."""

    def __init__(self) -> None:
        self.came: list[int] = []
        self.added: list[tuple[str, dict[str, str]]] = []

    def describe(self) -> dict[str, str | int]:
        return {"0.kind": "blk", "0.queues": 1}

    def connect(self, number: int, fd: int) -> bool:
        if not number:
            self.came.append(fd)
        return not number

    def add_next(self, kind: str, options: dict[str, str], fd: int) -> int:
        if kind == "tape":
            raise BadInput("no kind of device is called 'tape'")
        self.came.append(fd)
        self.added.append((kind, options))
        return 1

    def remove(self, number: int, _patience: float = 0) -> bool:
        return not number


class FakeDomain:
    """A domain that takes notes, and whose epoll is called by hand."""

    def __init__(self) -> None:
        self.machine = FakeMachine()
        self.boots = 1
        self.orders = type("Orders", (), {"max_vcpus": 4})()
        self.guest_ports = self
        self.asked: list[tuple[int, dict[str, int]]] = []
        self.windows: list[tuple[int, int, int]] = []
        self.killed: list[str] = []
        self.listens = True
        self.devices = FakeDevices()
        self.ready: dict[int, Callable[[int], None]] = {}

    def watch(self, fd: int, ready: Callable[[int], None]) -> None:
        self.ready[fd] = ready

    def unwatch(self, fd: int) -> None:
        del self.ready[fd]

    def pause(self) -> None:
        self.machine.pause()

    def resume(self) -> None:
        self.machine.resume()

    def ask(self, request: int, **values: int) -> bool:
        self.asked.append((request, values))
        return self.listens

    def counters(self) -> dict[str, int]:
        assert self.machine.paused
        return {"boots": 1, "exits_to_user_space": 7}

    def set_window(self, number: int, columns: int, rows: int) -> None:
        self.windows.append((number, columns, rows))

    def kill(self, why: str) -> None:
        self.killed.append(why)


class World:
    """A control socket and its clients."""

    def __init__(self) -> None:
        self.domain = FakeDomain()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind("")  # a name of the kernel's choice, in no folder
        self.listener.listen(8)
        self.address = self.listener.getsockname()
        self.clients: list[socket.socket] = []
        fd = self.listener.detach()
        self.control = Control(cast("Domain", self.domain), fd)

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(5)
        client.connect(self.address)
        self.clients.append(client)
        self.turn()
        return client

    def turn(self) -> None:
        """Do what the epoll would do now."""
        for fd in list(self.domain.ready):
            if fd in self.domain.ready:
                self.domain.ready[fd](1)

    def ask(self, line: str) -> str:
        client = self.connect()
        client.sendall(line.encode() + b"\n")
        self.turn()
        return client.recv(65536).decode().removesuffix("\n")

    def ask_with_socket(self, line: str, count: int = 1) -> str:
        """Ask with so many sockets beside the line; the other ends are closed at once."""
        client = self.connect()
        pairs = [socket.socketpair() for _ in range(count)]
        fds = array.array("i", [theirs.fileno() for _, theirs in pairs])
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
        client.sendmsg([line.encode() + b"\n"], rights)
        for pair in pairs:
            for end in pair:
                end.close()
        self.turn()
        return client.recv(65536).decode().removesuffix("\n")

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.turn()
        self.control._listener.close()


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


# ---- the document


def verbs_of_document() -> dict[str, str]:
    table = DOCUMENT.partition("## The verbs")[2].partition("## Errors")[0]
    rows = re.findall(r"^\| `([\w-]+)` \| ([^|]*)\|", table, re.MULTILINE)
    return {verb: arguments.strip() for verb, arguments in rows}


def test_document_has_the_verbs_of_the_code_with_their_arguments(world: World) -> None:
    assert list(verbs_of_document()) == list(world.control._verbs)
    summary = " ".join((module.__doc__ or "").split("\n\n")[1].split())
    shown = {words.split()[0]: " ".join(words.split()[1:]) for words in summary.split(" | ")}
    assert shown == verbs_of_document()


def test_document_has_the_limits_of_the_code() -> None:
    assert f"at most {module.LINE_MAX} bytes" in DOCUMENT
    assert f"Up to {module.CONNECTIONS_MAX} clients" in DOCUMENT


def test_document_has_the_errors_of_the_code(world: World) -> None:
    rows = re.findall(r"^\| (`error .*?) \|", DOCUMENT, re.MULTILINE)
    shown = {error for row in rows for error in re.findall(r"`(error [^`]*)`", row)}
    given = {
        world.ask("nonsense").replace("nonsense", "VERB"),
        world.ask("vcpus two").replace("vcpus", "VERB"),
        world.ask("vcpus 5").replace("4", "N"),
        world.ask("window 80 65536"),
        world.ask("sysrq up"),
        world.ask("attach 2"),
        world.ask("device-remove 7").replace("7", "N"),
        world.ask_with_socket("backend 7").replace("7", "N"),
        *(
            f"error {verb}: TEXT"
            for verb in ("device-add", "backend")
            if "socket" in world.ask(f"{verb} 0")
        ),
    }
    assert shown == given


# ---- the verbs


def test_status_and_stats(world: World) -> None:
    assert world.ask("status") == "ok state=running vcpus=1 boots=1"
    assert world.ask("stats") == "ok boots=1 exits_to_user_space=7"
    assert world.ask("pause") == "ok"
    assert world.ask("status") == "ok state=paused vcpus=1 boots=1"
    assert world.ask("stats").startswith("ok ")
    assert world.domain.machine.paused  # as it was
    assert world.ask("resume") == "ok"
    assert not world.domain.machine.paused


def test_requests_reach_the_guest(world: World) -> None:
    for line in ("poweroff", "reboot", "sysrq t", "vcpus 3"):
        assert world.ask(line) == "ok"
    assert world.domain.asked == [
        (abi.REQUEST_POWEROFF, {}),
        (abi.REQUEST_REBOOT, {}),
        (abi.REQUEST_SYSRQ, {"sysrq": ord("t")}),
        (abi.REQUEST_VCPUS, {"vcpus": 0b111}),
    ]
    world.domain.listens = False
    assert world.ask("poweroff") == "ok heard=no"


def test_window_and_kill(world: World) -> None:
    assert world.ask("window 132 43") == "ok"
    assert world.domain.windows == [(abi.PORT_TERMINAL, 132, 43)]
    assert world.ask("kill") == "ok"
    assert len(world.domain.killed) == 1


@pytest.mark.parametrize(
    "line",
    ["", "window", "window 1", "window -1 5", "window 1 65536", "vcpus", "vcpus 0", "vcpus 5",
     "vcpus x", "sysrq", "sysrq tt", "sysrq \u00e4", "STATUS", "vcpus " + "9" * 4000],
)  # fmt: skip
def test_what_cannot_be_is_an_error(world: World, line: str) -> None:
    assert world.ask(line).startswith("error ")
    assert world.domain.asked == []


@given(st.text(), st.sampled_from(["", "window ", "vcpus ", "sysrq "]))
def test_any_line_has_one_line_for_an_answer(text: str, verb: str) -> None:
    world = World()
    try:
        answer = world.control._answer(verb + text)
    finally:
        world.close()
    assert answer.partition(" ")[0] in ("ok", "error")
    assert "\n" not in answer


# ---- devices


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_socket_that_comes_with_a_line_is_the_backends(world: World) -> None:
    assert world.ask("devices") == "ok 0.kind=blk 0.queues=1"
    assert world.ask_with_socket("backend 0") == "ok"
    assert world.ask_with_socket("device-add fs tag=a%2Cb queues=2") == "ok number=1"
    assert world.domain.devices.added == [("fs", {"tag": "a,b", "queues": "2"})]
    for fd in world.domain.devices.came:
        socket.socket(fileno=fd).close()  # it is open, and nobody else's
    assert world.ask("device-remove 0") == "ok"


def test_sockets_that_nobody_takes_are_closed(world: World) -> None:
    world.connect()
    before = descriptors()
    for line in ("backend 7", "device-add tape", "device-add", "backend", "status", "nonsense"):
        for count in (1, 4, 9):
            world.ask_with_socket(line, count)
            world.clients.pop().close()
            world.turn()
    assert descriptors() == before


# ---- clients


def test_lines_in_pieces_and_many_at_once(world: World) -> None:
    client = world.connect()
    for piece in (b"sta", b"tus\npause\nres", b"ume\n"):
        client.sendall(piece)
        world.turn()
    assert client.recv(1000).count(b"\n") == 3
    client.sendall(b"pause\n" * 2000)
    for _ in range(10):
        world.turn()
    received = b""
    while received.count(b"\n") < 2000:
        received += client.recv(65536)
    assert set(received.split()) == {b"ok"}


def test_line_without_an_end_is_hung_up_on(world: World) -> None:
    client = world.connect()
    client.sendall(b"x" * (2 * module.LINE_MAX))
    for _ in range(4):
        world.turn()
    assert client.recv(1) == b""
    assert world.ask("status").startswith("ok ")


def test_client_that_does_not_read_is_hung_up_on(world: World) -> None:
    client = world.connect()
    client.settimeout(0)
    for _ in range(5000):
        try:
            client.sendall(b"nonsense\n" * 100)
        except OSError:
            break
        world.turn()
    else:
        pytest.fail("it was answered for ever")
    assert world.ask("status").startswith("ok ")


def test_one_client_too_many_is_hung_up_on(world: World) -> None:
    clients = [world.connect() for _ in range(module.CONNECTIONS_MAX + 1)]
    assert clients[-1].recv(1) == b""
    clients[0].sendall(b"status\n")
    world.turn()
    assert clients[0].recv(100).startswith(b"ok ")
    clients[1].close()
    world.turn()
    assert world.ask("status").startswith("ok ")
