"""Own a KVM file descriptor."""

from __future__ import annotations

from os import close as _close

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self


class Handle:
    """Close a descriptor exactly once; ``fd`` is -1 from then on."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        """Close the descriptor; doing so again does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            _close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} fd={self.fd}>"
