"""Programs of the host that networks are made with."""

from __future__ import annotations

import os

from kvmpv.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final


# All that can be caught: SIGKILL is 9, SIGSTOP 19.
SIGNALS: Final = tuple(number for number in range(1, 32) if number not in (9, 19))

# Locks that the programs keep while they run: whoever comes after one of us that is killed waits
# until what that has started is done.
locks: Final[set[int]] = set()


def require(name: str, package: str) -> str:
    """Return the path of a program; raise ``HostError`` with the Debian package that has it."""
    for place in (*os.environ.get("PATH", "").split(":"), "/usr/sbin", "/sbin"):
        path = f"{place}/{name}"
        if place and os.access(path, os.X_OK):
            return path
    raise HostError(f"there is no {name} on this host", hint=f"apt install {package}")


def run(argv: list[str], stdin: bytes = b"") -> tuple[int, str]:
    """Run a program to its end; return its status and all that it said.

    What it says goes to a file in memory, so a daemon that keeps it open keeps nobody waiting.
    """
    given = os.memfd_create("stdin", os.MFD_CLOEXEC)
    said = os.memfd_create("stdout", os.MFD_CLOEXEC)
    try:
        os.pwrite(given, stdin, 0)
        moves = [
            (os.POSIX_SPAWN_DUP2, given, 0),
            (os.POSIX_SPAWN_DUP2, said, 1),
            (os.POSIX_SPAWN_DUP2, said, 2),
            *((os.POSIX_SPAWN_DUP2, lock, lock) for lock in locks),
        ]
        environment = {**os.environ, "LC_ALL": "C"}
        # Whoever calls may have blocked signals, and a daemon would keep that.
        child = os.posix_spawn(
            *(argv[0], argv, environment),
            file_actions=moves,
            setsid=True,
            setsigmask=(),
            setsigdef=SIGNALS,
        )
        _, status = os.waitpid(child, 0)
        length = os.fstat(said).st_size
        return os.waitstatus_to_exitcode(status), os.pread(said, length, 0).decode(errors="replace")
    finally:
        os.close(given)
        os.close(said)
