"""Take away what a domain's owner leaves that is killed: ``OWNER FOLDER [SOCKET...]``.

This file is run by ``Afterwards``, when the owner has begun to end.
"""

from __future__ import annotations

import os
import sys
import time

if __name__ == "__main__":
    sys.path.insert(0, __file__.rsplit("/", 3)[0])

from kvmpv.toolstack import processes, rundir
from kvmpv.toolstack.afterwards import Afterwards

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Final
else:
    import _signal as signal

VARIABLES: Final = ("KVMPV_RUN_DIR", "XDG_RUNTIME_DIR")  # what says where folders are
PATIENCE: Final = 2.0  # seconds that processes have to see that their owner is gone


def sweeper(name: str, sockets: list[str]) -> Afterwards:
    """Have the domain ``name`` swept away once this process is gone.

    ``sockets`` are the paths of those that its user has named. Call it before anything is made,
    and cancel it when nothing is left.
    """
    words = [str(os.getpid()), f"{rundir.root()}/{name}", *map(os.path.abspath, sockets)]
    more = {key: os.environ[key] for key in VARIABLES if key in os.environ}
    return Afterwards(processes.python(os.path.abspath(__file__), words), more=more)


def main(owner: int, folder: str, *sockets: str) -> None:
    """Wait until the owner is gone, then until its processes are, and remove what is left."""
    _wait(owner)
    _end(rundir.processes_of(folder))
    rundir.sweep()
    for socket in sockets:
        if processes.is_stale(socket):
            processes.unlink(socket)
    from kvmpv.hostnet import sweep

    sweep()


def _wait(owner: int) -> None:
    """Wait for the owner's end: it closes its files, and so gives up its locks, one by one."""
    try:
        pidfd = os.pidfd_open(owner)
    except ProcessLookupError:
        return
    _is_over(pidfd, time.monotonic() + PATIENCE)  # else the number is another's by now
    os.close(pidfd)


def _end(pidfds: list[int]) -> None:
    """See that processes end: one that has been stopped, or hangs, does not by itself."""
    deadline = time.monotonic() + PATIENCE
    for pidfd in pidfds:
        if not _is_over(pidfd, deadline):
            try:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass
    for pidfd in pidfds:
        _is_over(pidfd, deadline + PATIENCE)
        os.close(pidfd)


def _is_over(pidfd: int, deadline: float) -> bool:
    """Say whether a process ends in time."""
    return processes.is_readable(pidfd, max(deadline - time.monotonic(), 0))


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
