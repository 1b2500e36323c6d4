"""A network namespace for a measurement: what is made in it is gone with its last process."""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kvmpv.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator

OWN = Path("/proc/thread-self/ns/net")
CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


def _unshare() -> None:
    if _LIBC.unshare(CLONE_NEWNET):
        raise HostError("no right to make a network namespace", hint="run it as root")


@contextmanager
def thread() -> Iterator[ThreadPoolExecutor]:
    """Give a thread in a network namespace of its own."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(_unshare).result()
        yield pool


@contextmanager
def entered() -> Iterator[None]:
    """Have this thread, and what it starts meanwhile, in a network namespace of its own."""
    before = os.open(OWN, os.O_RDONLY)
    try:
        _unshare()
        yield
    finally:
        _LIBC.setns(before, CLONE_NEWNET)
        os.close(before)
