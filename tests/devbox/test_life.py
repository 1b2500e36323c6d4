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
        assert "Linux version" in console.read()
    assert not os.path.exists(f"/proc/{emulator}")
    assert gone(own_box)

    # One retry in a fresh box, which is counted; the box ends with its owner.
    before = lines(own_box.place.retries)
    owner = subprocess.Popen(["sleep", "60"])
    environment = {"KVMPV_DEVBOX_OWNER": str(owner.pid), "KVMPV_DEVBOX_BEAT": "60"}
    script = f"test -e {own_box.place.folder}/once && exit 6; touch {own_box.place.folder}/once; "
    done = devbox("run", "--name", OWN, "--retry", "--", "sh", "-c",
                  script + "sync; echo o > /proc/sysrq-trigger; sleep 60", env=environment)  # fmt: skip
    (own_box.place.folder / "once").unlink()
    assert done.returncode == 6, done.stderr
    assert b"lost box" in done.stderr
    assert lines(own_box.place.retries) == before + 1
    status = own_box.status()
    assert status is not None
    owner.kill()
    owner.wait()
    assert gone(own_box)
    assert not os.path.exists(f"/proc/{status['emulator']}")


def test_there_may_be_no_box(own_box: Box) -> None:
    assert own_box.status() is None
    assert devbox("status", "--name", OWN).returncode == 1
    assert devbox("down", "--name", OWN).returncode == 0


def lines(path: Path) -> int:
    """Count the lines of a file that may not be there."""
    return path.read_text().count("\n") if path.exists() else 0


def gone(box: Box) -> bool:
    """Wait for the box's end."""
    until = time.monotonic() + 10
    while box.status() is not None and time.monotonic() < until:
        time.sleep(0.05)
    return box.status() is None
