"""A guest writes and verifies while its disks' worker is killed again and again."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

import kvmpv
from tests.host.dom0.qemu import compiled

SIZE = 4 << 20
DEATHS = 20


def pid_of(domain: kvmpv.Domain) -> int:
    """Return the process behind the first disk."""
    return int(domain.devices()[0]["pid"])


def wait_for_another(domain: kvmpv.Domain, dead: int) -> None:
    """Wait until there is a successor."""
    for _ in range(600):
        if pid_of(domain) not in (0, dead):
            return
        time.sleep(0.05)
    raise AssertionError(f"no successor of {dead}: {domain.devices()}")


@pytest.mark.timeout(400)
def test_guest_sees_nothing_of_twenty_deaths_of_its_worker(tmp_path: Path) -> None:
    program = compiled("disk_verify").read_bytes()
    image = tmp_path / "disk.img"
    with open(image, "wb") as file:
        file.truncate(SIZE)
    disks = [f"{image},queues=2"]
    with kvmpv.Domain(vcpus=2, memory=128 << 20, disks=disks, rng="off") as domain:
        assert domain.exec("cat > /tmp/v; chmod +x /tmp/v", stdin=program).status == 0
        start = "setsid /tmp/v /dev/vda /tmp/stop > /tmp/said 2>&1 < /dev/null &"
        assert domain.exec(start).status == 0
        chance = random.Random(DEATHS)
        for _ in range(DEATHS):
            pid = pid_of(domain)
            os.kill(pid, signal.SIGKILL)
            wait_for_another(domain, pid)
            time.sleep(chance.random())  # any moment: also before it serves anything
        stop = "touch /tmp/stop; while pidof v > /dev/null; do sleep 0.1; done; cat /tmp/said"
        said = str(domain.exec(stop))
        assert sorted(said.splitlines()) == [f"process {n}: good" for n in range(8)]
        assert "error" not in str(domain.exec("dmesg | grep -i vda"))
