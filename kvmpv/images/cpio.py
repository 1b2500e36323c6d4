"""Write cpio archives in the newc form, the kernel's initramfs; same input, same bytes."""

from __future__ import annotations

import os
import stat

_TRAILER = "TRAILER!!!"


class Archive:
    """Collect entries in memory; everything belongs to root and carries the time 0."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._number = 0
        self._made: set[str] = {""}

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Add a directory and those above it."""
        if path in self._made:
            return
        self.directory(os.path.dirname(path))
        self._made.add(path)
        self._entry(path, stat.S_IFDIR | mode, b"", links=2)

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file and the directories above it."""
        self.directory(os.path.dirname(path))
        self._entry(path, stat.S_IFREG | mode, data)

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link and the directories above it."""
        self.directory(os.path.dirname(path))
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def device(self, path: str, mode: int, major: int, minor: int) -> None:
        """Add a character device and the directories above it."""
        self.directory(os.path.dirname(path))
        self._entry(path, stat.S_IFCHR | mode, b"", device=(major, minor))

    def data(self) -> bytes:
        """Return the whole archive."""
        parts = [*self._parts, self._record(_TRAILER, 0, 0, b"", 1, (0, 0))]
        return b"".join(parts)

    def _entry(
        self, path: str, mode: int, data: bytes, links: int = 1, device: tuple[int, int] = (0, 0)
    ) -> None:
        self._number += 1
        self._parts.append(self._record(path, self._number, mode, data, links, device))

    @staticmethod
    def _record(
        path: str, number: int, mode: int, data: bytes, links: int, device: tuple[int, int]
    ) -> bytes:
        name = path.encode() + b"\0"
        fields = [number, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(name), 0]
        head = b"070701" + b"".join(b"%08x" % field for field in fields) + name
        return _padded(head) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
