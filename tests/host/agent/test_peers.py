"""Peers that come, go, and mean ill."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmpv.agent import frames
from kvmpv.errors import AgentError
from tests.host.agent.conftest import Served
from tests.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    from kvmpv.agent.client import Connection
    from kvmpv.agent.session import Session

word = st.binary(min_size=4, max_size=4)
kind = st.sampled_from([*range(8), *range(0x10, 0x19), 0x30, 0xFF])
# Nearly right: known types, small numbers, payloads of a plausible size.
nearly = st.builds(
    frames.pack, kind, st.integers(0, 3), st.one_of(word, st.binary(max_size=64)), st.integers(0, 3)
)
# Commands that run, so that later frames hit a session.
running = st.builds(
    lambda number, flags, argv: frames.pack_run(
        number, argv, flags=flags, window=(10_000, 10_000), tty=None
    ),
    st.integers(1, 3),
    st.sampled_from([0, frames.RUN_NO_STDIN]),
    st.sampled_from([["true"], ["cat"], ["head", "-c", "99999", "/dev/zero"]]),
)
raw = st.binary(max_size=200)
greeting = st.just(frames.MAGIC + b"n" * 16)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(nearly, running, running, raw, greeting), max_size=30))
def test_hostile_frames_never_crash_the_agent(sanitised: Path, stream: list[bytes]) -> None:
    served = Served(sanitised)
    served.sock.settimeout(0.2)
    with contextlib.suppress(OSError):
        served.sock.sendall(frames.MAGIC + b"n" * 16 + b"".join(stream))
        served.sock.shutdown(socket.SHUT_WR)
        while served.sock.recv(65536):
            pass
    assert served.end() == (0, "")


def test_the_agent_serves_again_after_nonsense(served: Served) -> None:
    first = served.peer()
    first.send(frames.pack(0x7F, 1))
    with pytest.raises(AgentError, match="makes no sense"):
        first.capture(["true"])
    assert served.peer().capture(["echo", "again"])[1] == b"again\n"


def test_a_frame_that_is_too_long_is_refused(served: Served) -> None:
    first = served.peer()
    first.send(bytes([frames.DATA, 0, 1, 0]) + (1 << 20).to_bytes(4, "little"))
    with pytest.raises(AgentError, match="too long"):
        first.ping(5)


def test_input_beyond_its_credit_is_refused(link: Connection) -> None:
    session = link.start(["sleep", "9"])
    link.send(frames.pack(frames.DATA, session.id, bytes(65536)) * 2)
    with pytest.raises(AgentError, match="makes no sense"):
        session.wait()


def test_a_new_peer_ends_what_the_old_one_ran(served: Served) -> None:
    first = served.peer()
    session = first.start(["sh", "-c", "echo $$; exec sleep 99"])
    pid = first_number(session)
    second = served.peer()
    assert second.capture(["echo", "new"])[1] == b"new\n"
    until(lambda: not alive(pid))


def test_a_new_peer_in_the_middle_of_a_frame_is_heard(served: Served) -> None:
    first = served.peer()
    assert first.capture(["true"])[0] == 0
    served.sock.setblocking(True)
    served.sock.sendall(bytes([frames.RUN, 0, 9, 0]) + (60_000).to_bytes(4, "little") + b"half")
    assert served.peer().capture(["echo", "heard"])[1] == b"heard\n"


def test_a_deaf_command_is_killed_when_its_peer_goes(served: Served) -> None:
    link = served.peer()
    pid = int(link.capture("trap '' HUP; (trap '' HUP; sleep 60 >&- 2>&-) & echo $!")[1])
    os.kill(pid, signal.SIGKILL)
    session = link.start("trap '' HUP TERM; echo $$; while :; do sleep 1; done")
    pid = first_number(session)
    session.close()
    link.send(frames.pack(frames.CLOSE, session.id))
    until(lambda: not alive(pid))


def test_the_agent_ends_its_commands_when_its_socket_closes(sanitised: Path) -> None:
    served = Served(sanitised)
    served.peer().start(["sleep", "60"])
    started = time.monotonic()
    time.sleep(0.1)
    assert served.end()[0] == 0
    assert time.monotonic() - started < 5


def test_a_ping_is_answered_while_output_floods(link: Connection) -> None:
    session = link.start(["cat", "/dev/zero"])
    assert link.ping(5) < 5
    session.signal(signal.SIGKILL)
    session.wait()


def first_number(session: Session) -> int:
    """Return the number that a command has printed, which goes on."""
    while not session._pending[frames.STDOUT]:
        session.poll_once(select.poll(), 5)
    return int(b"".join(session._pending[frames.STDOUT]))


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
