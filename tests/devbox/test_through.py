"""What a command names is the host's own, for that command alone; all else stays the box's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.devbox.conftest import devbox

if TYPE_CHECKING:
    from pathlib import Path

    from kvmpv.devbox.box import Box

pytestmark = pytest.mark.usefixtures("box")

WRITES = "cat file; echo more >>file; echo log >new; cp in/x in/y; pwd; exit 7"


def test_named_files_are_written_through_and_nothing_stays_in_the_box(
    tmp_path: Path, box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("first\n")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/x").write_text("x")
    monkeypatch.chdir(tmp_path)
    named = [word for path in ("file", "in", "new", "never") for word in ("--through", path)]
    done = devbox("run", *named, "--", "sh", "-c", WRITES)
    assert (done.returncode, done.stdout) == (7, f"first\n{tmp_path}\n".encode()), done.stderr
    assert (tmp_path / "file").read_text() == "first\nmore\n"
    assert (tmp_path / "new").read_text() == "log\n"
    assert (tmp_path / "in/y").read_text() == "x"
    assert not (tmp_path / "never").exists()
    assert box.capture(["test", "-e", str(tmp_path)])[0] == 1


def test_nobody_else_in_the_box_can_write_to_the_host(box: Box) -> None:
    status, out, _ = box.capture("ls -A /run/kvmpv-box/host; grep -c ' 9p rw.*host' /proc/mounts")
    assert (status, out) == (1, b"0\n")


def test_devices_of_the_host_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    done = devbox("run", "--through", str(tmp_path / "pipe"), "--", "true")
    assert done.returncode == 2
    assert b"is a device or a socket of this host" in done.stderr
