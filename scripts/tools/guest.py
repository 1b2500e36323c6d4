"""What scripts/run makes of its options: a disk and a network by default, the user's own files.

Locks that are taken here are inherited by what this process becomes, and end with that.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING

from kvmpv.errors import BadInput
from kvmpv.images import disk, disk_use
from kvmpv.toolstack import config
from scripts.tools.place import cache

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvmpv.toolstack.config import DomainConfig

SCRATCH_SIZE = 8 << 30
_SCRATCHES = 16  # guests at the same time; who wants more says which disk
_CHAIN = 16  # images below images
_WORDS = ("terminal", "none")  # what --console takes that is no file


class Asked:
    """The options of one scripts/run; ``config`` is None where they cannot be."""

    def __init__(self, args: list[str]) -> None:
        self.config: DomainConfig | None = None
        self._file = ""
        try:
            values = config.parse_arguments(args)
            self._file = str(values.get("config", ""))
            self.config = config.make(values)
        except BadInput:
            pass

    def defaults(self, *, here: bool) -> list[str]:
        """Return the options for a disk and a network where none was asked for."""
        asked = self.config
        if asked is None or asked.kernel:
            return []
        more = []
        if not (asked.disks or asked.root):
            more += ["--disk", f"{scratch(keep=not here)}"]
        if not asked.nets and (os.geteuid() == 0 or not here):
            more += ["--net", "nat"]
        return more

    def own_files(self) -> list[str]:
        """Return the files and folders that the options name; lock those of the disks.

        Raises BadInput for an image that somebody has locked here: the dev box's locks are its own.
        """
        asked = self.config
        if asked is None:
            return [self._file] if os.path.exists(self._file) else []
        found = [path for path in (self._file, asked.kernel, asked.initrd) if path]
        for device in asked.devices:
            if device.source != "path" or device.kind not in ("blk", "fs"):
                continue
            found.append(device.text)
            if device.kind == "blk" and not (device.flag("readonly") or device.flag("snapshot")):
                lock(device.text)
        found += [below for path in list(found) for below in backing_files(path)]
        made = [asked.trace, "" if asked.console in _WORDS else asked.console]
        return [path for path in found if os.path.exists(path)] + [path for path in made if path]


def lock(path: str) -> None:
    """Hold the lock of a disk's image until this process's end; raises BadInput if it is taken."""
    if not os.path.isfile(path) or not os.access(path, os.W_OK):
        return  # kvmpv run says what is wrong with it
    users = disk_use.users(Path(path))
    if users or not _locked(path):
        who = ", ".join(users) or "somebody"
        raise BadInput(f"{path} is in use: {who}", hint="end that first, or take another image")


def _locked(path: str) -> bool:
    fd = os.open(path, os.O_RDWR)
    os.set_inheritable(fd, True)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return False
    return True


def scratch(*, keep: bool) -> Path:
    """Return a disk that nobody uses: sparse, kept between runs; ``keep`` it locked.

    Raises BadInput when there are too many.
    """
    folder = cache() / "scratch"
    folder.mkdir(exist_ok=True)
    for number in range(1, _SCRATCHES + 1):
        path = folder / f"disk{number}.img"
        if not path.exists():
            disk.create(path, SCRATCH_SIZE)
        if not disk_use.users(path) and (not keep or _locked(str(path))):
            return path
    raise BadInput(
        f"{_SCRATCHES} guests have a scratch disk", hint="end one, or give a disk by --disk"
    )


def backing_files(path: str) -> Iterator[str]:
    """Yield the images that an image lies on, the nearest first."""
    for _ in range(_CHAIN):
        if not os.path.isfile(path):
            return
        below = disk_use.inspect(Path(path)).backing
        if not below:
            return
        path = os.path.join(os.path.dirname(path), below)
        yield path
