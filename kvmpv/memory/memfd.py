"""Guest memory's files: sealed memfds, which whoever starts a VMM makes, and hands over."""

from __future__ import annotations

import fcntl
import os

from kvmpv.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def create_memfd(name: str, size: int) -> int:
    """Create a memfd of ``size`` bytes whose size can no more change; return its descriptor.

    A backend that maps it could otherwise be killed by a SIGBUS whenever the other side truncates.
    Raise ``HostError`` when the host refuses.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    except OSError as error:
        os.close(fd)
        raise HostError(
            f"cannot make {size} bytes of guest memory: {error.strerror}",
            hint="give it less: --memory",
        ) from None
    return fd


def is_sealed(fd: int) -> bool:
    """Tell whether a memfd's size can no more change."""
    return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS == SEALS
