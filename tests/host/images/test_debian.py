"""Building and copying Debian images: whole or not at all, once for all who ask.

A stand-in for mmdebstrap makes a small tree; what the real one makes, tests/boot looks at.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from kvmpv.images import debian

KVMPV = str(Path(__file__).parents[3] / "build/bin/kvmpv")
MIB = 1 << 20
STAND_IN = """#!/bin/sh
. "$(dirname "$0")/settings"
for word; do case $word in */root) root=$word;; esac; done
echo "I: running apt-get update..."
echo x >>"$RECORD"
[ -z "$FAIL" ] || { echo "$FAIL"; exit 25; }
mkdir -p "$root/etc" "$root/usr/bin" "$root/var" "$root/dev"
[ -z "$HANG" ] || {
    trap '' TERM  # as the real one, which waits for its children first
    mount -t tmpfs none "$root/dev"
    read -r pid _ </proc/self/stat  # not $$, which a namespace has of its own
    echo "$pid" >"$HANG.new"; mv "$HANG.new" "$HANG"; sleep 600; exit 1
}
sleep "${SLOW:-0}"
echo "root:*:1:0:99999:7:::" >"$root/etc/shadow"
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "mmdebstrap").write_text(STAND_IN)
    (tools / "mmdebstrap").chmod(0o755)
    return tmp_path


def start(
    place: Path, *more: str, prefix: tuple[str, ...] = (), **variables: str
) -> subprocess.Popen[str]:
    settings = {"RECORD": str(place / "record")} | variables
    lines = [f"{name}={shlex.quote(value)}\n" for name, value in settings.items()]
    (place / "tools/settings").write_text("".join(lines))
    path = f"{place}/tools:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "XDG_CACHE_HOME": str(place / "cache")}
    return subprocess.Popen(
        [*prefix, KVMPV, "image", "build", "debian", *more],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str], status: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    return out, err


def left(place: Path) -> list[str]:
    """Name what is in the cache's folder but locks."""
    return [path.name for path in (place / "cache/kvmpv/debian").glob("*") if
            not path.name.endswith(".lock")]  # fmt: skip


def fsck(image: Path) -> None:
    program = shutil.which("e2fsck", path="/usr/sbin:/sbin") or "e2fsck"
    subprocess.run([program, "-fn", image], check=True, capture_output=True)


def test_image_is_built_once_and_copied_to_the_size_asked_for(place: Path) -> None:
    target = place / "d.img"
    out, err = end(start(place, "--output", str(target), "--size", "300M"))
    assert out == f"{target}\n"
    assert "log: " in err
    assert target.stat().st_size == 300 * MIB
    assert target.stat().st_blocks * 512 < 100 * MIB
    fsck(target)
    kept = Path(end(start(place))[0].strip())
    assert (place / "record").read_text() == "x\n"
    assert left(place) == [kept.name]
    fsck(kept)
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_copy_has_no_name_before_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, target = tmp_path / "image", tmp_path / "out" / "d.img"
    target.parent.mkdir()
    image.touch()
    os.truncate(image, 8 * MIB)
    mke2fs = shutil.which("mke2fs", path="/usr/sbin:/sbin") or "mke2fs"
    subprocess.run([mke2fs, "-q", "-t", "ext4", image], check=True)
    seen = []
    link = os.link

    def see(*arguments: Any, **options: Any) -> None:
        seen.append(os.listdir(target.parent))
        link(*arguments, **options)

    monkeypatch.setattr(os, "link", see)
    debian.place(image, target, 16 * MIB)
    assert seen == [[]]
    assert os.listdir(target.parent) == ["d.img"]
    fsck(target)


def test_container_that_may_not_mount_builds_too(place: Path) -> None:
    kept = Path(end(start(place, prefix=("setpriv", "--bounding-set", "-sys_admin")))[0].strip())
    assert left(place) == [kept.name]
    fsck(kept)


def test_two_builds_at_once_are_one(place: Path) -> None:
    both = [start(place, SLOW="1") for _ in range(2)]
    paths = {end(process)[0] for process in both}
    assert len(paths) == 1
    assert (place / "record").read_text() == "x\n"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_build_leaves_no_image_and_the_next_one_is_whole(
    place: Path, how: signal.Signals
) -> None:
    hanging = place / "hanging"
    process = start(place, HANG=str(hanging))
    until = time.monotonic() + 30
    while not hanging.exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(how)
    process.communicate(timeout=30)
    assert process.returncode
    _gone(int(hanging.read_text()))
    assert str(place) not in Path("/proc/self/mountinfo").read_text()
    kept = Path(end(start(place))[0].strip())
    assert left(place) == [kept.name]
    fsck(kept)


def _gone(pid: int) -> None:
    """Wait for the stand-in's end: it must not outlive who wanted it."""
    until = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}/exe"):
        assert time.monotonic() < until, "mmdebstrap goes on alone"
        time.sleep(0.01)


def test_no_network_costs_one_line_with_the_reason(place: Path) -> None:
    said = "W: Failed to fetch: Could not resolve 'nowhere'"
    out, err = end(start(place, "--output", str(place / "d.img"), FAIL=said), 2)
    line = err.splitlines()[-1]
    assert "mmdebstrap failed: Failed to fetch: Could not resolve 'nowhere'" in line
    assert out == ""
    assert left(place) == []
    assert not (place / "d.img").exists()


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--output", "{}/there"], "exists already"),
        (["--output", "{}/gone/d.img"], "there is no folder"),
        (["--output", "{}/d.img", "--size", "4M"], "are no size for this image"),
        (["--output", "{}/d.img", "--size", "99999999T"], "are no size for this image"),
        (["--output", "{}/d.img", "--size", "2147483649"], "are no size for this image"),
        (["--suite", "nosuch"], "no Debian nosuch archive among apt's sources"),
    ],
)
def test_bad_input_costs_one_line(place: Path, words: list[str], what: str) -> None:
    (place / "there").touch()
    process = start(place, *(word.replace("{}", str(place)) for word in words))
    _, err = end(process, 2)
    assert what in err.splitlines()[-1]
    assert not (place / "record").exists()  # nothing was built for it
    assert not list(place.glob("*d.img*"))
