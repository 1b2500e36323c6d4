"""Disk images of the folders that Python starts from: 9p is slow for many small files."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from kvmpv.errors import HostError
from kvmpv.images import keyed

_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"
_SPARE = 64 << 20


def folders() -> list[Path]:
    """Return Python's own library and the virtual environment, as far as they are there."""
    library = Path(sysconfig.get_path("stdlib")).resolve()
    environment = Path(sys.prefix).resolve()
    found = [library]
    if environment != Path(sys.base_prefix).resolve():
        found.append(environment)
    return [path for path in found if path.is_dir()]


def image(folder: Path) -> Path:
    """Return the path of an ext4 image of ``folder``, made anew when its content has changed."""

    def make(into: Path) -> None:
        _make(folder, into)

    return keyed.build("devbox/fast.ext4", keyed.digest(["2", str(folder), state(folder)]), make)


def state(folder: Path) -> str:
    """Return what tells one state of a folder from another: its directories' times."""
    places = [path for path in folder.rglob("*") if path.is_dir() and path.name != "__pycache__"]
    return " ".join(f"{path}:{path.stat().st_mtime_ns}" for path in sorted([folder, *places]))


def _make(folder: Path, into: Path) -> None:
    program = shutil.which("mke2fs", path=_PATH)
    if not program:
        raise HostError("no mke2fs", hint="install the Debian package e2fsprogs")
    files = list(folder.rglob("*"))
    # Each file takes whole blocks, and an inode.
    size = sum((path.lstat().st_size + 8191) // 4096 * 4096 for path in files) + _SPARE
    with into.open("wb") as file:
        file.truncate(size)
    command = [
        program, "-q", "-F", "-t", "ext4", "-O", "^has_journal,^resize_inode,^metadata_csum",
        "-m", "0", "-N", str(len(files) + 4096), "-E", "lazy_itable_init=1,nodiscard",
        "-d", str(folder), str(into),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.splitlines() or ["no message"])[-1]
        raise HostError(f"mke2fs cannot make an image of {folder}: {reason}")
