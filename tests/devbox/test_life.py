"""How a box ends: asked to, with its owner, or lost."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from kvmpv.errors import LostBox
from tests.devbox.conftest import OWN, devbox

if TYPE_CHECKING:
    from pathlib import Path

    from kvmpv.devbox.box import Box


def test_a_box_that_stops_beating_is_lost_and_its_console_kept(
    own_box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVMPV_DEVBOX_BEAT", "3")
    own_box.up(owner=os.getpid())
    emulator = own_box.wait()["emulator"]
    os.kill(emulator, signal.SIGSTOP)
    with pytest.raises(LostBox, match="stopped beating") as caught:
        own_box.capture(["true"])
    assert caught.value.exit_status == 126
    with open(caught.value.console) as console:
        assert "] " in console.read()
    assert gone(own_box, emulator)


def test_a_lost_box_is_replaced_once_and_ends_with_its_owner(own_box: Box) -> None:
    before = lines(own_box.place.retries)
    once = own_box.place.folder / "once"
    script = f"test -e {once} && exit 6; touch {once}; echo o > /proc/sysrq-trigger; sleep 60"
    with subprocess.Popen(["sleep", "100"]) as owner:
        done = devbox(
            "run", "--name", OWN, "--retry", "--", "sh", "-c", script,
            env={"KVMPV_DEVBOX_OWNER": str(owner.pid)},
        )  # fmt: skip
        once.unlink()
        status = own_box.status()
        owner.kill()
    assert done.returncode == 6, done.stderr
    assert b"lost box: the emulator has ended" in done.stderr
    assert lines(own_box.place.retries) == before + 1
    assert status is not None
    assert gone(own_box, status["emulator"])


def test_there_may_be_no_box(own_box: Box) -> None:
    assert own_box.status() is None
    assert devbox("status", "--name", OWN).returncode == 1
    assert devbox("down", "--name", OWN).returncode == 0


def lines(path: Path) -> int:
    """Count the lines of a file that may not be there."""
    return path.read_text().count("\n") if path.exists() else 0


def gone(box: Box, emulator: int) -> bool:
    """Wait for the end of the box and of its emulator."""
    until = time.monotonic() + 20
    while box.status() is not None or os.path.exists(f"/proc/{emulator}"):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True
