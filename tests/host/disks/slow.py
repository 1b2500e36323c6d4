"""A process whose writes to one disk are slow, by the kernel's own limits; needs root.

Requests that were submitted stay in the kernel, on their way, whatever becomes of the process.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

V1 = Path("/sys/fs/cgroup/blkio")
V2 = Path("/sys/fs/cgroup")


def disk_below(path: Path) -> str:
    """Return the number of the whole disk below a file, or of that which ``path`` is."""
    found = path.stat()
    device = found.st_rdev if path.is_block_device() else found.st_dev
    node = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    if (node / "partition").exists():
        node = node.parent
    return (node / "dev").read_text().strip()


@contextmanager
def slow_writes(pid: int, path: Path, bytes_a_second: int) -> Iterator[None]:
    """Limit what a process writes to the disk below ``path``, after as before its death."""
    number = disk_below(path)
    if (V1 / "blkio.throttle.write_bps_device").exists():
        group = V1 / f"kvmpv-{pid}"
        group.mkdir()
        (group / "blkio.throttle.write_bps_device").write_text(f"{number} {bytes_a_second}")
    else:
        (V2 / "cgroup.subtree_control").write_text("+io")
        group = V2 / f"kvmpv-{pid}"
        group.mkdir()
        (group / "io.max").write_text(f"{number} wbps={bytes_a_second}")
    try:
        (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        for child in (group / "cgroup.procs").read_text().split():
            (group.parent / "cgroup.procs").write_text(child)
        group.rmdir()
