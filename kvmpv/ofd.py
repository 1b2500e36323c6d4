"""Locks of open file descriptions (fcntl(2), F_OFD_SETLK), which Python has no names for.

Such a lock goes with the last descriptor of its description, whichever process has that.
"""

from __future__ import annotations

import fcntl
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

F_OFD_GETLK: Final = 36
F_OFD_SETLK: Final = 37
_FLOCK: Final = struct.Struct("hhqqi4x")  # struct flock


def take(fd: int, kind: int, start: int = 0, length: int = 0) -> None:
    """Lock bytes from ``start`` on, by fcntl's F_RDLCK or F_WRLCK; a length of 0 is all of them.

    Raise OSError, with EAGAIN or EACCES where another has a lock that this one conflicts with.
    """
    fcntl.fcntl(fd, F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))


def conflicts(fd: int, kind: int, start: int = 0, length: int = 0) -> bool:
    """Say whether another has a lock that such a one conflicts with; needs no right to write."""
    record = _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
    found: int = _FLOCK.unpack(fcntl.fcntl(fd, F_OFD_GETLK, record))[0]
    return found != fcntl.F_UNLCK
