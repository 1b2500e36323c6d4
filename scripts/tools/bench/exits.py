"""Count the exits to user space of any VMM, by KVM's own tracepoint."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kvmpv.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator

TRACEFS = Path("/sys/kernel/tracing")
EVENT = TRACEFS / "events/kvm/kvm_userspace_exit/id"
# linux/perf_event.h: type, size, config, and nothing else up to PERF_ATTR_SIZE_VER0
_ATTRIBUTES = struct.Struct("=IIQ48x")
_TYPE_TRACEPOINT = 2
_FLAG_FD_CLOEXEC = 8
_SYS_PERF_EVENT_OPEN = 298  # x86-64


@contextmanager
def tracing() -> Iterator[None]:
    """Have tracefs mounted meanwhile."""
    mine = not EVENT.exists()
    if mine:
        done = subprocess.run(["mount", "-t", "tracefs", "tracefs", TRACEFS], check=False)
        if done.returncode:
            raise HostError("no tracefs", hint="run it as root, with KVM loaded")
    try:
        yield
    finally:
        if mine:
            subprocess.run(["umount", TRACEFS], check=False)


class UserExits:
    """What all threads of a process that are there now come to; close it."""

    def __init__(self, pid: int) -> None:
        event = int(EVENT.read_text())
        self._fds = [_open(event, int(task.name)) for task in Path(f"/proc/{pid}/task").iterdir()]

    def count(self) -> int:
        """Return the exits to user space since this was made."""
        return sum(int.from_bytes(os.read(fd, 8), "little") for fd in self._fds)

    def close(self) -> None:
        """Stop counting."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()


def _open(event: int, thread: int) -> int:
    attributes = _ATTRIBUTES.pack(_TYPE_TRACEPOINT, _ATTRIBUTES.size, event)
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.syscall(_SYS_PERF_EVENT_OPEN, attributes, thread, -1, -1, _FLAG_FD_CLOEXEC)
    if fd < 0:
        raise HostError(f"perf_event_open: {os.strerror(ctypes.get_errno())}", hint="run as root")
    return fd
