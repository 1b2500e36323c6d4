"""What a command names is the host's own, for that command alone; all else stays the box's."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.devbox.conftest import SCRIPT, devbox

if TYPE_CHECKING:
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


def run(*words: str) -> subprocess.CompletedProcess[bytes]:
    """Run scripts/run as a user does."""
    environment = os.environ | {"KVMPV_DEVBOX_OWNER": str(os.getpid())}
    return subprocess.run(
        [str(Path(SCRIPT).with_name("run")), *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=180,
        check=False,
    )


def test_guest_writes_to_the_users_own_disk_and_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with open("d.img", "wb") as file:
        file.truncate(8 << 20)
    Path("folder").mkdir()
    Path("folder/there").write_text("from here")
    command = (
        "yes pattern | dd of=/dev/vda bs=4k count=64 seek=100 iflag=fullblock && sync && "
        "cat /mnt/t/there >/mnt/t/back"
    )
    done = run("--disk", "d.img", "--share", "folder,tag=t", "--console", "log",
               "--net", "none", "--exec", command)  # fmt: skip
    assert done.returncode == 0, done.stderr
    data = Path("d.img").read_bytes()
    assert data[409600:] == (b"pattern\n" * 32768) + bytes(len(data) - 409600 - 262144)
    assert Path("folder/back").read_text() == "from here"
    assert sorted(os.listdir()) == ["d.img", "folder", "log"]


def test_image_that_is_in_use_here_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "d.img"
    with image.open("wb") as file:
        file.truncate(1 << 20)
        fcntl.flock(file, fcntl.LOCK_EX)
        done = run("--disk", str(image), "--exec", "true")
    assert done.returncode == 2
    assert f"{image} is in use: process {os.getpid()}".encode() in done.stderr
