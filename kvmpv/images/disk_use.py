"""What a disk image is, and who uses it: looked at without changing anything."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from kvmpv.errors import BadInput
from kvmpv.hostdev.disks import loops_over
from kvmpv.hostdev.formats import HEAD, format_of

_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"


@dataclass(slots=True)
class Image:
    """What there is to say of one image; sizes are in bytes."""

    path: str
    format: str
    size: int
    allocated: int
    device: bool
    backing: str = ""
    partitions: str = ""  # the kind of its partition table
    file_system: str = ""
    label: str = ""
    users: list[str] = field(default_factory=list)


def inspect(path: Path) -> Image:
    """Return format and sizes of the image at ``path``; raises BadInput for what is no image."""
    try:
        return _inspect(path)
    except OSError as error:
        raise BadInput(
            f"cannot read {path}: {error.strerror}", hint="give the path of a disk image"
        ) from None


def _inspect(path: Path) -> Image:
    state = path.stat()  # first: to open a watchdog is to start it
    device = stat.S_ISBLK(state.st_mode)
    if not (device or stat.S_ISREG(state.st_mode)):
        what = "a folder" if stat.S_ISDIR(state.st_mode) else "no file"
        raise BadInput(f"{path} is {what}", hint="give the path of a disk image")
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        head = os.read(fd, HEAD)
        size = os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)
    kind = format_of(head)
    found = Image(str(path), kind, size, size if device else state.st_blocks * 512, device)
    if kind == "qcow2":
        found.size = int.from_bytes(head[24:32], "big")
        found.backing = _backing(path, head, size)
    return found


def describe(path: Path) -> Image:
    """Return all there is to say of the image at ``path``; raises BadInput for what is none."""
    found = inspect(path)
    found.users = users(path)
    if found.format == "raw":
        _probe(path, found)
    return found


def _backing(path: Path, head: bytes, size: int) -> str:
    offset, length = int.from_bytes(head[8:16], "big"), int.from_bytes(head[16:20], "big")
    if not 0 < offset < size or length > 1023:  # the format's limit
        return ""
    with path.open("rb") as file:
        file.seek(offset)
        return os.fsdecode(file.read(length))


def _probe(path: Path, found: Image) -> None:
    """Ask blkid, which reads more kinds than we care to list."""
    program = shutil.which("blkid", path=_PATH)
    if not program:
        return
    command = [program, "-p", "-o", "export", os.path.abspath(path)]  # -a would be an option
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    values = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    found.partitions = values.get("PTTYPE", "")
    found.file_system = values.get("TYPE", "")
    found.label = values.get("LABEL", "")


# ---- Who uses it ------------------------------------------------------------------------


def users(path: Path) -> list[str]:
    """Name those who use the image: domains and processes that have it locked, mounts."""
    state = path.stat()
    found = _mounts(state) + [f"loop device /dev/{name}" for name in loops_over(str(path))]
    holders, hidden = _lock_holders(state)
    if hidden or (not holders and _locked(path)):
        holders = holders or _openers(state)
        if not holders:
            found.append("a process that is not to be seen from here")
    return found + [_named(pid) for pid in holders]


def workers(path: Path) -> dict[int, str]:
    """Return the domains' workers that use the image: each one's process, and who it is."""
    named = {pid: _named(pid) for pid in _lock_holders(path.stat())[0]}
    return {pid: name for pid, name in named.items() if name.startswith("domain ")}


def _locked(path: Path) -> bool:
    """Tell whether somebody holds the lock that a domain's disk is taken with."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno == errno.EWOULDBLOCK
    finally:
        os.close(fd)
    return False


def _lock_holders(state: os.stat_result) -> tuple[list[int], bool]:
    """Return who has the file locked by /proc/locks (proc(5)), and whether it hides somebody.

    A lock of an open file description has no process, and one whose taker has ended none alive.
    """
    device = f"{os.major(state.st_dev):02x}:{os.minor(state.st_dev):02x}:{state.st_ino}"
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    # What waits for a lock has an arrow in the second place.
    pids = {int(words[4]) for words in lines if words[1] != "->" and words[5] == device}
    alive = sorted(pid for pid in pids if pid > 0 and _is_alive(pid))
    return alive, len(alive) < len(pids)


def _is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _openers(state: os.stat_result) -> list[int]:
    """Return the processes that have the file open, as far as we may see."""
    found = []
    for folder in Path("/proc").glob("[0-9]*/fd"):
        pid = int(folder.parent.name)
        try:
            files = [os.stat(f"{folder}/{name}") for name in os.listdir(folder)]
        except OSError:
            continue
        same = any((f.st_dev, f.st_ino) == (state.st_dev, state.st_ino) for f in files)
        if same and pid != os.getpid():
            found.append(pid)
    return found


def _named(pid: int) -> str:
    """Name a process: the domain that a worker of ours serves, else its command."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        command = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return f"process {pid}"
    ours = any(word.endswith("kvmpv/dom0/__main__.py") for word in words)
    name = next((word[5:] for word in words if word.startswith("name=")), "")
    return f"domain {name}" if ours and name else f"process {pid} ({command})"


def _mounts(state: os.stat_result) -> list[str]:
    if not stat.S_ISBLK(state.st_mode):
        return []
    device = f"{os.major(state.st_rdev)}:{os.minor(state.st_rdev)}"
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [f"mounted on {line.split()[4]}" for line in lines if line.split()[2] == device]
