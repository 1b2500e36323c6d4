"""A command in the box is as one here: status, streams, signals, terminal, the checkout."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest

from kvmpv.devbox import debian
from kvmpv.devbox.place import CHECKOUT
from tests.devbox.conftest import SCRIPT, devbox

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kvmpv.devbox.box import Box

pytestmark = pytest.mark.usefixtures("box")


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Return the path of a file in the checkout, which is removed afterwards."""
    path = CHECKOUT / "build" / f"devbox-test-{os.getpid()}"
    yield path
    path.unlink(missing_ok=True)


def test_the_emulator_is_mended() -> None:
    assert debian.emulator().mended, "kvmpv/devbox/mend.py does not know this version"


def test_status_and_streams_pass_through() -> None:
    data = os.urandom(300_000)
    done = devbox("run", "--", "sh", "-c", "cat; echo err >&2; exit 7", input=data)
    assert (done.returncode, done.stdout, done.stderr) == (7, data, b"err\n")


def test_it_is_a_kvm_host(box: Box) -> None:
    script = (
        "test -c /dev/kvm && cat /sys/kernel/mm/transparent_hugepage/shmem_enabled "
        "/sys/devices/system/clocksource/clocksource0/current_clocksource && ls /sys/module"
    )
    status, out, _ = box.capture(script)
    assert status == 0
    assert b"[advise]" in out
    assert b"tsc\n" in out
    for module in (b"kvm_amd", b"tun", b"bridge", b"vhost_net"):
        assert module in out.split()


def test_an_edit_is_seen_by_the_next_command(box: Box, scratch: Path) -> None:
    for text in ("one", "three", "two", ""):
        scratch.write_text(text)
        assert box.capture(["cat", str(scratch)]) == (0, text.encode(), b"")
    scratch.unlink()
    assert box.capture(["test", "-e", str(scratch)])[0] == 1


def test_an_edit_is_seen_by_a_command_that_runs(box: Box, scratch: Path) -> None:
    script = (
        f"i=0; until [ -e {scratch} ]; do sleep 0.1; i=$((i+1)); [ $i -lt 200 ] || exit 9; done"
    )
    timer = threading.Timer(1.0, scratch.write_text, ["now"])
    timer.start()
    assert box.capture(script)[0] == 0
    timer.join()


def test_what_a_command_writes_to_the_checkout_is_here_when_it_ends(
    box: Box, scratch: Path
) -> None:
    assert box.capture(f"echo written > {scratch}")[0] == 0
    assert scratch.read_text() == "written\n"


def test_other_writes_stay_in_the_box(box: Box) -> None:
    path = f"/etc/devbox-test-{os.getpid()}"
    assert box.capture(f"echo x > {path}; cat {path}; rm {path}")[1] == b"x\n"
    assert not os.path.exists(path)


def test_the_folder_and_the_environment_are_those_of_the_caller() -> None:
    folder = str(CHECKOUT / "tests")
    done = devbox(
        "run", "--", "sh", "-c", "pwd; echo $KVMPV_X $KVMPV_BOX", cwd=folder, env={"KVMPV_X": "y"}
    )
    assert done.stdout.decode().split() == [folder, "y", "1"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_pass_through(number: signal.Signals) -> None:
    script = f"trap 'echo caught; exit 5' {number.name[3:]}; echo ready; sleep 60 & wait"
    with subprocess.Popen([SCRIPT, "run", "--", "bash", "-c", script], stdout=-1) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(number)
        assert child.stdout.read() == b"caught\n"
        assert child.wait(20) == 5


def test_a_killed_client_ends_its_command(box: Box) -> None:
    with subprocess.Popen([SCRIPT, "run", "--", "sh", "-c", "echo $$; sleep 60"], stdout=-1) as one:
        assert one.stdout is not None
        pid = one.stdout.readline().decode().strip()
        one.kill()
    until = time.monotonic() + 20
    while box.capture(["test", "-d", f"/proc/{pid}"])[0] == 0:
        assert time.monotonic() < until


def test_a_terminal_is_a_terminal() -> None:
    master, slave = pty.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
    script = "test -t 0 && test -t 1 && stty size; read line; echo got $line; exit 4"
    with subprocess.Popen(
        [SCRIPT, "run", "--", "sh", "-c", script], stdin=slave, stdout=slave
    ) as child:
        os.close(slave)
        seen = b""
        while b"33 99" not in seen:
            seen += os.read(master, 4096)
        os.write(master, b"keys\r")
        while b"got keys" not in seen:
            seen += os.read(master, 4096)
        assert child.wait(20) == 4
    os.close(master)


def test_several_clients_at_once(box: Box) -> None:
    children = [
        subprocess.Popen([SCRIPT, "run", "--", "sh", "-c", f"sleep 0.3; exit {number}"])
        for number in range(5)
    ]
    assert [child.wait(60) for child in children] == list(range(5))


def test_a_command_that_is_not_there_is_127() -> None:
    done = devbox("run", "--", "no-such-command")
    assert done.returncode == 127
    assert b"No such file" in done.stderr
