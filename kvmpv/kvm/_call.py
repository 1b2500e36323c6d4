"""Make ioctls and turn what fails into KvmError."""

from __future__ import annotations

from fcntl import ioctl as _fcntl_ioctl

from kvmpv.errors import KvmError

from . import _ioctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer

_EBADF = 9


def call(what: str, fd: int, request: int, arg: int = 0) -> int:
    """Make a small ioctl that takes a number and return its result."""
    try:
        return _fcntl_ioctl(fd, request, arg)
    except OSError as error:
        raise KvmError(what, error.errno or 0) from None
    except ValueError:  # fcntl's word for a closed, negative descriptor
        raise KvmError(what, _EBADF) from None


def put(what: str, fd: int, request: int, record: bytes) -> None:
    """Make a small ioctl that reads a record of at most 1024 bytes."""
    get(what, fd, request, record)


def get(what: str, fd: int, request: int, record: bytes) -> bytes:
    """Make a small ioctl that fills a record of at most 1024 bytes and return it."""
    try:
        return _fcntl_ioctl(fd, request, record)
    except OSError as error:
        raise KvmError(what, error.errno or 0) from None
    except ValueError:
        raise KvmError(what, _EBADF) from None


def big(what: str, fd: int, request: int, arg: int | Buffer = 0) -> int:
    """Make an ioctl that may block or is larger than 1024 bytes, without the lock."""
    result = _ioctl.ioctl(fd, request, arg)
    if result < 0:
        raise KvmError(what, -result)
    return result
