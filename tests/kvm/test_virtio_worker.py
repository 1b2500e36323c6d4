"""A disk as users have it: our VMM and our worker, started and watched over by the toolstack."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.kvm import refguest
from tests.kvm.command import once
from tests.kvm.refguest import Guest


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(16 << 20)
    return path


def workers(guest: Guest) -> list[int]:
    """Return the processes that serve this test's domains."""
    mark = f"\0name={guest.domain.config.name}\0".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes()
            except OSError:
                continue  # it has just ended
            if mark in words and b"dom0/__main__.py\0" in words:
                found.append(int(folder.name))
    return found


@once
@pytest.mark.parametrize("test", ["virtio,disk n=64 depth=16 size=4096", "badrings", "resets n=30"])
def test_guest_finds_its_disk_as_the_specification_has_it(test: str, image: Path) -> None:
    end, guest = refguest.run(test, disks=[str(image)])
    assert guest.failures == []
    assert end.kind == "poweroff"


def test_requests_enter_neither_vmm_nor_python(image: Path) -> None:
    exits = set()
    for requests in (16, 320):
        end, guest = refguest.run(f"disk n={requests}", disks=[str(image)], stats=True)
        assert guest.failures == []
        assert end.stats["device0_doorbell_exits"] == 0
        exits.add(end.stats["exits_to_user_space"])
    assert len(exits) == 1


@once
def test_worker_killed_again_and_again_loses_nothing(image: Path) -> None:
    with Guest("disk n=200 depth=16 endless=1", disks=[str(image)]) as guest:
        guest.expect("disk sectors")
        for _ in range(5):
            for pid in workers(guest):
                os.kill(pid, signal.SIGKILL)
            connections = guest.domain.control("devices")["0.connections"]
            deadline = time.monotonic() + refguest.PATIENCE
            while (now := guest.domain.control("devices"))["0.connections"] == connections:
                assert time.monotonic() < deadline, now
        guest.domain.exec_port.sendall(b"x")
        guest.end()
        assert guest.failures == []
        assert {"disk-written", "disk-read-back"} <= guest.passed
