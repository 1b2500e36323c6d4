"""QEMU 7.2 as the front end: a guest of its own does I/O through our worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.host.dom0 import qemu
from tests.host.dom0.workers import Worker

if TYPE_CHECKING:
    from pathlib import Path


def test_a_guest_of_qemu_gets_random_numbers(tmp_path: Path) -> None:
    with Worker(tmp_path, "rng") as worker:
        said = qemu.run(
            worker, "vhost-user-rng", "cat /sys/class/misc/hw_random/rng_current;"
            " head -c 1000 /dev/hwrng | wc -c"
        )  # fmt: skip
        assert said.split()[:2] == ["virtio_rng.0", "1000"]
        assert worker.stats()["0.bytes"] >= 1000
        assert worker.log == ""
