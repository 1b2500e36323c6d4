"""The disk that brings fio and iperf3 into guests that have no libraries."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from kvmpv.errors import HostError
from kvmpv.images import keyed

PROGRAMS = ("fio", "iperf3")
SERIAL = "tools"  # what the disk is known by in the guest
MOUNT = "/mnt"
SPARE = 24 << 20  # what a file system takes for itself, and more


def image() -> Path:
    """Return a read-only ext4 image with the programs and what they are linked to.

    Raises HostError when one of them is missing.
    """
    files = sorted({Path(path) for program in PROGRAMS for path in linked(program)})
    # By size and time: in the dev box, reading them all takes longer than a measurement.
    states = [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]

    def make(into: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="kvmpv-bench-") as folder:
            for path in files:
                shutil.copy(path, folder)
            size = sum(path.stat().st_size for path in files)
            make_ext4(into, size + SPARE, "-d", folder)

    return keyed.build("bench/tools.ext4", keyed.digest(states), make)


def make_ext4(image: Path, size: int, *more: str) -> None:
    """Make a file of a file system; it has room for so many bytes, not all of them for files."""
    argv = ["mke2fs", "-q", "-t", "ext4", "-m", "0", "-O", "^has_journal", *more]
    subprocess.run([*argv, image, f"{size >> 20}M"], check=True, stdout=subprocess.DEVNULL)


def command(program: str, *options: str) -> str:
    """Return the command line that runs a program in the guest."""
    loader = f"{MOUNT}/ld-linux-x86-64.so.2 --library-path {MOUNT}"
    return " ".join([loader, f"{MOUNT}/{program}", *options])


def linked(program: str) -> list[str]:
    """Return the paths of a program and of what it is linked to; HostError when it is missing."""
    found = shutil.which(program)
    if found is None:
        raise HostError(f"no {program}", hint=f"apt-get install {program}")
    said = subprocess.run(["ldd", found], capture_output=True, text=True, check=True).stdout
    return [found, *re.findall(r"(/\S+) \(0x", said)]
