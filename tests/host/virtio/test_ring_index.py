"""The plain-Python ring as another processor sees it: indices change whole."""

from __future__ import annotations

import mmap
import os

from kvmpv.virtio.ring import DeviceRing

SIZE = 64
TURNS = 60000  # less than an index takes to wrap


def watch(used: memoryview) -> int:
    """Fork a process that looks at the used index until it is TURNS: status 0 if it only grew."""
    pid = os.fork()
    if pid:
        return pid
    index, last = used.cast("H"), 0
    while last < TURNS:
        now = index[1]
        if now < last:
            os._exit(1)
        last = now
    os._exit(0)


def test_driver_sees_the_used_index_grow_and_nothing_else() -> None:
    shared = memoryview(mmap.mmap(-1, 3 * mmap.PAGESIZE))
    desc, avail, used = (
        shared[at * mmap.PAGESIZE :][:length]
        for at, length in enumerate((16 * SIZE, 6 + 2 * SIZE, 6 + 8 * SIZE))
    )
    ring = DeviceRing([], SIZE, desc, avail, used)
    pid = watch(used)
    for _ in range(TURNS):
        ring.push(0, 0)
        ring.publish()
    assert os.waitpid(pid, 0)[1] == 0
