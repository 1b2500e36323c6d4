"""However a domain ends, nothing of it is left: process, thread, descriptor, folder, raw mode."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import kvmpv
from kvmpv.errors import BadInput, HostError
from tests.kvm import refguest
from tests.kvm.command import IN_BOX, KVMPV, PATIENCE, Command, once, processes
from tests.kvm.refguest import Guest, firmware

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TESTS = Path(__file__).parent


class Boom(Exception):
    """What goes wrong in a program that uses a domain."""


def belongings(command: Command) -> dict[str, list[str]]:
    """Return what this process has, and what its domains have."""
    return {
        "descriptors": sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in _descriptors()),
        "left": command.left(os.getpid()),
    }


def _descriptors() -> list[str]:
    # The one that lists them is in the list too, and gone again.
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    made = Command(tmp_path)
    for name in ("KVMPV_RUN_DIR", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, made.environment[name])
    return made


# ---- from Python


def power_off() -> None:
    assert refguest.run("version", vcpus=2)[0].kind == "poweroff"


def reboot() -> None:
    with Guest("reboot") as guest:
        guest.expect("boot generation")
        guest.domain.exec_port.sendall(b"r")
        assert guest.domain.exec_port.recv(1) == b""
        guest.domain.attach(1).sendall(b"p")
        assert guest.end().kind == "poweroff"


def crash() -> None:
    end, _ = refguest.run("crash reason=x")
    os.unlink(end.report)


def exception() -> None:
    with pytest.raises(Boom):
        _spin_and_raise()


def _spin_and_raise() -> None:
    with Guest("spin") as guest:
        guest.expect("spinning")
        raise Boom


def killed_process() -> None:
    with Guest("spin") as guest:
        guest.expect("spinning")
        os.kill(guest.domain.pid, signal.SIGKILL)
        end = guest.domain.wait_for_end()
        assert (end.kind, end.status) == ("failed", 123)
        os.unlink(end.report)


def killed_at_once() -> None:
    with Guest("spin") as guest:
        assert guest.domain.kill().kind == "killed"


def no_kernel() -> None:
    with pytest.raises(BadInput):
        kvmpv.Domain(kernel=str(TESTS)).start()


WAYS = [power_off, crash, exception]
if not IN_BOX:
    WAYS += [reboot, killed_process, killed_at_once, no_kernel]


@pytest.mark.parametrize("way", WAYS)
def test_program_has_what_it_had_before(way: Callable[[], None], command: Command) -> None:
    firmware("refguest")
    before, threads = belongings(command), set(os.listdir("/proc/self/task"))
    way()
    assert belongings(command) == before
    assert set(os.listdir("/proc/self/task")) <= threads  # another test's may end meanwhile


@once
def test_start_without_descriptors_fails_and_leaves_nothing(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def refuse(pid: int) -> int:
        made.append(pid)
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    before = belongings(command)
    with pytest.raises(HostError, match="cannot start a domain: Too many open files"):
        kvmpv.Domain(kernel=firmware("refguest")).start()
    assert belongings(command) == before
    with pytest.raises(ProcessLookupError):
        os.kill(made[0], 0)


@once
def test_domain_starts_again_after_its_end(command: Command) -> None:
    domain = kvmpv.Domain(kernel=firmware("first"), memory="16M")
    for _ in range(2):
        with domain:
            assert domain.wait_for_end().kind == "poweroff"
    assert command.left(os.getpid()) == []


# ---- from the command line


class Running:
    """The command on a pseudo-terminal, and what it wrote there."""

    def __init__(self, command: Command, test: str, *options: str) -> None:
        self.command = command
        self.master, slave = pty.openpty()
        self.modes = termios.tcgetattr(slave)
        self.slave = slave
        self.text = ""
        arguments = ["--kernel", firmware("refguest"), "-m", "16M", "--cmdline", f"test={test}"]
        self.resize(132, 43)
        self.child = subprocess.Popen(
            ["setsid", "--ctty", KVMPV, "run", *arguments, *options],
            env=command.environment,
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )

    def expect(self, text: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while text not in self.text:
            ready, _, _ = select.select([self.master], [], [], deadline - time.monotonic())
            assert ready, f"nothing came for too long:\n{self.text}"
            self.text += os.read(self.master, 4096).decode()

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def resize(self, columns: int, rows: int) -> None:
        size = struct.pack("<4H", rows, columns, 0, 0)
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, size)

    @property
    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.slave)[3] & (termios.ECHO | termios.ICANON | termios.ISIG)

    def end(self) -> int:
        """Wait for the end; check that the terminal is as it was and nothing is left."""
        status = self.child.wait(timeout=PATIENCE)
        assert termios.tcgetattr(self.slave) == self.modes
        assert self.command.nothing_is_left(self.child.pid)
        return status

    def close(self) -> None:
        self.child.kill()
        self.child.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def on_terminal(command: Command) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(test: str, *options: str) -> Running:
        started.append(Running(command, test, *options))
        return started[-1]

    yield start
    for one in started:
        one.close()


def test_terminal_is_raw_tells_its_size_and_is_restored(
    on_terminal: Callable[..., Running],
) -> None:
    running = on_terminal("echo")
    running.expect("window 132 43")
    assert running.is_raw
    running.resize(80, 25)
    running.expect("window 80 25")
    running.type("<\x03\x04\r>")  # Ctrl-C, Ctrl-D and Return are the guest's
    running.expect("<\x03\x04\r>")
    os.kill(running.child.pid, signal.SIGTERM)
    assert running.end() == 130


@once
def test_ctrl_bracket_leaves_and_asks_the_guest(on_terminal: Callable[..., Running]) -> None:
    running = on_terminal("requests")
    running.expect("ready")
    running.type("\x1d")
    running.expect("leaving; the guest is asked to power off")
    assert running.end() == 0


@once
def test_hang_up_of_the_terminal_ends_the_domain(on_terminal: Callable[..., Running]) -> None:
    running = on_terminal("spin")
    running.expect("spinning")
    os.kill(running.child.pid, signal.SIGHUP)
    assert running.end() == 130


def _started(command: Command, test: str, *options: str) -> subprocess.Popen[str]:
    arguments = ("--kernel", firmware("refguest"), "--cmdline", f"test={test}", *options)
    child = command.start("run", *arguments)
    assert child.stdout is not None
    last = {"requests": "ready\n", "spin": "spinning\n"}[test]
    assert last in iter(child.stdout.readline, "")
    return child


@once
def test_ctrl_c_asks_the_guest(command: Command) -> None:
    with _started(command, "requests") as child:
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=PATIENCE)
    assert child.returncode == 0
    assert err == "kvmpv: asked the guest to power off; Ctrl-C again ends it\n"
    assert command.nothing_is_left(child.pid)


@once
def test_second_ctrl_c_ends_the_guest(command: Command) -> None:
    with _started(command, "spin") as child:
        assert child.stderr is not None
        child.send_signal(signal.SIGINT)
        assert "Ctrl-C again ends it" in child.stderr.readline()
        assert child.stderr.readline() == "kvmpv: the guest does not listen to requests (yet)\n"
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=PATIENCE)
    assert (child.returncode, err) == (130, "")
    assert command.nothing_is_left(child.pid)


def test_killed_command_takes_its_domain_along(command: Command) -> None:
    with _started(command, "spin") as child:
        [domain] = processes(child.pid)
        assert domain != child.pid
        child.kill()
    assert command.nothing_is_left(child.pid)


@once
def test_killed_command_leaves_the_terminal_as_it_was(on_terminal: Callable[..., Running]) -> None:
    running = on_terminal("spin")
    running.expect("spinning")
    assert running.is_raw
    running.child.kill()
    deadline = time.monotonic() + PATIENCE
    while termios.tcgetattr(running.slave) != running.modes:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert running.end() == -signal.SIGKILL


@once
def test_next_domain_sweeps_where_nobody_was_left_to(command: Command) -> None:
    with _started(command, "spin") as child:
        for pid in _children(child.pid):  # before it
            os.kill(pid, signal.SIGKILL)
        child.kill()
    assert [path.name for path in command.domains.iterdir()] != []
    ended = command.run("run", "--kernel", firmware("first"), "-m", "16M")
    assert (ended.status, ended.err) == (0, "")
    assert command.left(ended.pid) == []


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@once
def test_name_of_a_killed_command_is_free(command: Command) -> None:
    with _started(command, "spin", "--name", "again") as child:
        child.kill()
    ended = command.run("run", "--kernel", firmware("first"), "-m", "16M", "--name", "again")
    assert (ended.status, ended.err) == (0, "")
    assert command.nothing_is_left(ended.pid)
