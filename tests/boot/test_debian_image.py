"""A Debian image with systemd, on our disk and our network, from its boot to its end."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

import pytest

import kvmpv
from kvmpv.cache import folder
from kvmpv.images import debian
from tests.boot.test_terminal import read_until

BUILT = Path(folder()) / "current/debian.ext4"  # scripts/test builds it: that takes a network


@pytest.mark.timeout(480)
def test_debian_boots_gets_its_address_resolves_names_and_ends_with_a_clean_disk(
    tmp_path: Path,
) -> None:
    disk = tmp_path / "d.img"
    debian.place(BUILT, disk, 2 << 30)
    with kvmpv.Domain(
        disks=[str(disk)], root="disk", nets=["nat"], memory=512 << 20, vcpus=2
    ) as domain:
        read_until(domain, b"debian login: ", 300)
        assert str(domain.exec("systemctl is-system-running --wait")).strip() == "running"
        wait = "until ip -4 -o address show dev eth0 | grep -q inet; do sleep 1; done"
        assert domain.exec(["timeout", "60", "sh", "-c", wait]).status == 0
        # The network's own name for the host, by way of systemd-resolved and DHCP's answer.
        found = str(domain.exec(["getent", "ahostsv4", socket.gethostname()])).split()
        route = str(domain.exec("ip -4 route show default")).split()
        assert found[0] == route[route.index("via") + 1]
        # As large as the disk, though the image that was copied is not.
        blocks = domain.exec(["stat", "-f", "-c", "%b %S", "/"])
        count, size = map(int, str(blocks).split())
        assert count * size > 1 << 30
        end = domain.poweroff(timeout=120)
    assert (end.kind, end.status) == ("poweroff", 0)
    e2fsck = shutil.which("e2fsck", path="/usr/sbin:/sbin") or "e2fsck"
    subprocess.run([e2fsck, "-fn", disk], check=True, capture_output=True)
