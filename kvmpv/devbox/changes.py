"""Watch the checkout for changes, so that the box may cache it until one happens."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

_CREATE, _ISDIR, _OVERFLOW = 0x100, 0x40000000, 0x4000
# Modified, attributes, moved from and to, created, deleted; do not follow, directories only.
_MASK = 0x2 | 0x4 | 0x40 | 0x80 | _CREATE | 0x200 | 0x02000000 | 0x01000000
_EVENT = struct.Struct("iIII")
# Git's objects never change, and tools' caches are of no interest to a command's outcome.
_SKIPPED = {"objects", ".mypy_cache", ".ruff_cache", ".hypothesis", "__pycache__"}


class Watch:
    """Tell whether anything below a folder has changed; ``fileno`` polls readable then.

    ``alike`` names the files that have changed and yet look as they did when asked before: 9p
    tells versions of a file apart by its size and the second of its time.
    """

    def __init__(self, root: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._paths: dict[int, str] = {}
        self._seen: dict[str, tuple[tuple[int, int], set[int]]] = {}
        self._files: set[str] = set()
        self.alike: list[str] = []
        self._add(str(root))

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return int(self._fd)

    def changed(self) -> bool:
        """Return whether something has changed since the last call."""
        seen = False
        self._files.clear()
        while data := self._read():
            seen = True
            self._follow(data)
        self.alike = [path for path in sorted(self._files) if self._looks_alike(path)]
        return seen

    def close(self) -> None:
        """Stop watching."""
        os.close(self._fd)

    def _looks_alike(self, path: str) -> bool:
        try:
            found = os.lstat(path)
        except OSError:
            self._seen.pop(path, None)
            return False
        second = (found.st_ino, int(found.st_mtime))
        before, sizes = self._seen.get(path, (second, set()))
        if before != second:
            sizes = set()
        alike = found.st_size in sizes
        self._seen[path] = (second, sizes | {found.st_size})
        return alike

    def _read(self) -> bytes:
        try:
            return os.read(self._fd, 65536)
        except BlockingIOError:
            return b""

    def _follow(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            watch, mask, _, length = _EVENT.unpack_from(data, at)
            name = os.fsdecode(data[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0"))
            at += _EVENT.size + length
            if name and watch in self._paths and not mask & _ISDIR:
                self._files.add(f"{self._paths[watch]}/{name}")
            # A folder may be filled before it is watched: it is changed in any case.
            if mask & _ISDIR and watch in self._paths and name and name not in _SKIPPED:
                self._add(f"{self._paths[watch]}/{name}")

    def _add(self, root: str) -> None:
        for path, folders, _ in os.walk(root):
            folders[:] = [name for name in folders if name not in _SKIPPED]
            watch = self._libc.inotify_add_watch(self._fd, os.fsencode(path), _MASK)
            if watch >= 0:
                self._paths[watch] = path
