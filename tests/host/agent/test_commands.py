"""What an agent does with a command, all of it without any machine."""

from __future__ import annotations

import _thread
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from kvmpv.agent import frames

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kvmpv.agent.client import Connection


def test_streams_and_status(link: Connection) -> None:
    script = "cat; echo err >&2; exit 7"
    assert link.capture(script, data=b"in") == (7, b"in", b"err\n")


def test_words_are_not_seen_by_a_shell(link: Connection) -> None:
    assert link.capture(["printf", "%s|", "a b", "", "$HOME", "*"])[1] == b"a b||$HOME|*|"


def test_a_command_that_is_not_there_is_127(link: Connection) -> None:
    status, _, err = link.capture(["no-such-command"])
    assert status == 127
    assert b"No such file" in err


def test_a_command_that_may_not_be_run_is_126(link: Connection, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    assert link.capture([str(tmp_path / "plain")])[0] == 126


def test_a_signals_death_is_128_and_the_signal(link: Connection) -> None:
    assert link.capture("kill -KILL $$")[0] == 137


def test_environment_and_folder(link: Connection, tmp_path: Path) -> None:
    status, out, _ = link.capture("pwd; echo $A $HOME", env={"A": "b c"}, cwd=str(tmp_path))
    assert (status, out) == (0, f"{tmp_path}\nb c /root\n".encode())


def test_given_environment_wins_over_the_default(link: Connection) -> None:
    assert link.capture("echo $HOME", env={"HOME": "/x"})[1] == b"/x\n"


def test_a_folder_that_is_not_there_is_127(link: Connection) -> None:
    assert link.capture(["true"], cwd="/no/such/folder")[0] == 127


def test_megabytes_pass_unchanged_both_ways(link: Connection) -> None:
    data = os.urandom(3_000_000) + frames.MAGIC * 3 + bytes(range(256))
    assert link.capture(["cat"], data=data) == (0, data, b"")


def test_without_input_a_command_reads_the_end_at_once(link: Connection) -> None:
    assert link.capture(["cat"]) == (0, b"", b"")


def test_a_command_that_reads_none_of_its_input_ends(link: Connection) -> None:
    assert link.capture(["true"], data=bytes(1_000_000))[0] == 0


def test_input_of_a_command_that_closes_it_is_dropped(link: Connection) -> None:
    assert link.capture("exec <&-; sleep 0.2; echo on", data=bytes(500_000))[1] == b"on\n"


def test_what_outlives_its_command_does_not_hold_it(link: Connection) -> None:
    started = time.monotonic()
    assert link.capture("sleep 30 & echo started") == (0, b"started\n", b"")
    assert time.monotonic() - started < 10


def once_ready(out: bytearray, act: Callable[[], object]) -> None:
    def wait_and_act() -> None:
        wait_for(out, b"ready")
        act()

    _thread.start_new_thread(wait_and_act, ())


def test_signals_reach_the_whole_group(link: Connection) -> None:
    session = link.start("trap 'echo caught; exit 3' TERM; echo ready; sleep 60 & wait")
    out = bytearray()
    once_ready(out, lambda: session.signal(signal.SIGTERM))
    assert session.pump(None, out, None) == 3
    assert out == b"ready\ncaught\n"


def test_a_terminal_has_its_size_and_changes_it(link: Connection) -> None:
    session = link.start(
        "stty size; trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.05; done",
        tty=(100, 30),
    )
    out = bytearray()
    once_ready(out, lambda: session.resize(70, 20))
    assert session.pump(None, out, None) == 0
    assert out.split() == [b"30", b"100", b"ready", b"20", b"70"]


def test_a_terminals_keys_are_keys(link: Connection) -> None:
    session = link.start("echo ready; exec cat", tty=(80, 24))
    out = bytearray()
    once_ready(out, lambda: session.write(b"\x03"))
    assert session.pump(None, out, None) == 128 + signal.SIGINT


def test_the_end_of_input_is_a_key_on_a_terminal(link: Connection) -> None:
    session = link.start(["cat"], tty=(80, 24))
    out = bytearray()
    assert session.pump(b"line\n", out, None) == 0
    assert b"line" in out


def test_a_slow_reader_holds_nobody_else(link: Connection) -> None:
    slow = link.start(["cat", "/dev/zero"])
    for _ in range(3):
        assert link.capture(["echo", "quick"]) == (0, b"quick\n", b"")
    assert link.ping(5) < 5
    slow.signal(signal.SIGKILL)
    assert slow.wait() == 137


def test_credit_bounds_what_is_sent(link: Connection) -> None:
    session = link.start(["cat", "/dev/zero"])
    link.capture(["sleep", "0.2"])
    held = sum(len(chunk) for chunk in session._pending[frames.STDOUT])
    assert held == session.WINDOW
    session.signal(signal.SIGKILL)
    session.wait()


def test_closed_output_ends_the_command(link: Connection) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    assert link.run(["cat", "/dev/zero"], stdout=write_end) == 128 + signal.SIGPIPE
    os.close(write_end)


def test_many_threads_at_once(link: Connection) -> None:
    done: list[bool] = []

    def one(number: int) -> None:
        data = os.urandom(200_000)
        done.append(link.capture(f"cat; exit {number}", data=data) == (number, data, b""))

    for number in range(12):
        _thread.start_new_thread(one, (number,))
    end = time.monotonic() + 20
    while len(done) < 12 and time.monotonic() < end:
        time.sleep(0.02)
    assert done == [True] * 12


def test_more_commands_than_there_is_room_for_are_refused(link: Connection) -> None:
    from kvmpv.errors import AgentError

    sessions = [link.start(["sleep", "60"]) for _ in range(64)]
    with pytest.raises(AgentError, match="too many"):
        link.capture(["true"])
    for session in sessions:
        session.signal(signal.SIGKILL)
    assert {session.wait() for session in sessions} == {137}
    assert link.capture(["true"])[0] == 0


def wait_for(out: bytearray, word: bytes) -> None:
    end = time.monotonic() + 5
    while word not in out and time.monotonic() < end:
        time.sleep(0.01)
