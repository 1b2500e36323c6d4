"""Disks whose backends die again and again, while the guest writes and verifies."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import kvmpv
from kvmpv.toolstack import backend
from scripts.tools.bench.guest_tools import linked
from tests.host.disks.slow import slow_writes
from tests.host.dom0.qemu import compiled

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
SIZE = 4 * MIB
DEATHS = 20
PATIENCE = 100.0


@pytest.fixture(autouse=True)
def _no_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the dead replaced at once: so many deaths a minute are not the usual."""
    monkeypatch.setattr(backend, "DELAYS", (0.0,))


def image(folder: Path, name: str = "disk.img") -> Path:
    """Return a new image of SIZE without data."""
    path = folder / name
    path.touch()
    os.truncate(path, SIZE)
    return path


def alive(domain: kvmpv.Domain) -> None:
    """Fail with what the guest died of, if it has: without it nothing is restarted either."""
    end = domain.wait(timeout=0)
    assert end is None, f"the guest has ended: {end}"


def kill(domain: kvmpv.Domain, devices: int | None = None) -> None:
    """Kill what serves the first devices, or all, at once, and wait for the next ones."""
    before = domain.devices()[:devices]
    for pid in {int(device["pid"]) for device in before}:
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    while any(
        one["restarts"] == other["restarts"]
        for one, other in zip(before, domain.devices()[:devices], strict=True)
    ):
        alive(domain)
        assert time.monotonic() < deadline, domain.devices()
        time.sleep(0.05)


# ---- a verifying program in the guest


def start_verifying(domain: kvmpv.Domain, disk: str) -> None:
    """Start disk_verify.c on a disk."""
    program = compiled("disk_verify").read_bytes()
    assert domain.exec("cat > /tmp/v; chmod +x /tmp/v", stdin=program).status == 0
    started = domain.exec(
        f"setsid /tmp/v /dev/{disk} /tmp/stop > /tmp/said.{disk} 2>&1 < /dev/null &"
    )
    assert started.status == 0


def end_verifying(domain: kvmpv.Domain, *disks: str) -> None:
    """Have all of them look at all that they have written, and see that it is right."""
    alive(domain)
    domain.exec("touch /tmp/stop; while pidof v > /dev/null; do sleep 0.1; done")
    for disk in disks:
        said = str(domain.exec(f"cat /tmp/said.{disk}"))
        assert sorted(said.splitlines()) == [f"process {n}: good" for n in range(8)], disk
    assert "error" not in str(domain.exec("dmesg | grep -i ' vd'"))


# ---- fio


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with fio and what it is linked to, for a guest that has no libraries."""
    folder = tmp_path_factory.mktemp("tools")
    for path in linked("fio"):
        shutil.copy(path, folder)
    return folder


def fio(*options: str) -> str:
    """Return the command line that runs fio in the guest."""
    folder = "/mnt/tools"
    start = f"{folder}/ld-linux-x86-64.so.2 --library-path {folder} {folder}/fio"
    return " ".join([start, "--thread", "--name=job", "--filename=/dev/vda", *options])


@pytest.mark.timeout(400)
def test_fio_verifies_what_it_wrote_while_the_worker_is_killed_twenty_times(
    tools: Path, tmp_path: Path
) -> None:
    """The limit keeps as many requests in flight as fio has, at each of the deaths."""
    job = fio(
        *("--rw=randwrite", "--bs=4k", f"--size={SIZE}", "--ioengine=libaio", "--iodepth=16"),
        *("--direct=1", "--verify=crc32c", "--verify_fatal=1", "--loops=1000", "--runtime=600"),
    )
    disks = [f"{image(tmp_path)},iops=100"]
    shares = [f"{tools},tag=tools,ro"]
    chance = random.Random(DEATHS)
    with (
        kvmpv.Domain(disks=disks, shares=shares, memory="256M", rng="off") as domain,
        ThreadPoolExecutor() as threads,
    ):
        domain.exec("true")
        running = threads.submit(domain.exec, f"{job} & echo $! >/tmp/fio; wait $!")
        while domain.stats().get("device0_writes", 0) < 64:
            assert not running.done(), running.result()
            time.sleep(0.1)
        for _ in range(DEATHS):
            kill(domain, 1)
            assert not running.done(), running.result()
            time.sleep(chance.random())  # any moment: also before it serves anything
        stats = domain.stats()
        domain.exec("kill -INT $(cat /tmp/fio)")  # it ends the pass that it is at
        done = running.result(PATIENCE)
        assert done.status in (0, 128), done
        assert b"err= 0" in done.stdout, done
        assert domain.exec("dmesg | grep -ci 'vda.*error'").stdout == b"0\n"
    assert stats["backend_restarts"] == DEATHS


# ---- all of Dom0


@pytest.mark.timeout(200)
def test_guest_sees_nothing_of_the_death_of_all_its_backends_at_once(tmp_path: Path) -> None:
    disks = [f"{image(tmp_path)},queues=2", f"{image(tmp_path, 'other.img')},isolate"]
    with kvmpv.Domain(vcpus=2, memory=128 * MIB, disks=disks, nets=["nat"]) as domain:
        assert len({device["pid"] for device in domain.devices()}) == 2
        start_verifying(domain, "vda")
        start_verifying(domain, "vdb")
        for _ in range(3):
            kill(domain)
        end_verifying(domain, "vda", "vdb")
        gateway = "$(ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p')"
        assert domain.exec(f"ping -c 1 -W 10 {gateway}").status == 0


# ---- disks below that are slow, and that fail


def dmsetup(*arguments: str, table: str = "") -> None:
    """Run dmsetup."""
    subprocess.run(["dmsetup", *arguments], input=table, text=True, check=True, timeout=30)


@contextmanager
def loop(folder: Path) -> Iterator[Path]:
    """Make a block device of SIZE."""
    subprocess.run(["modprobe", "loop"], check=True)
    argv = ["losetup", "--find", "--show", str(image(folder))]
    disk = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield Path(disk)
    finally:
        subprocess.run(["losetup", "--detach", disk], check=True)


@pytest.mark.timeout(200)
def test_slow_disk_gets_no_write_of_a_dead_worker_after_its_successors(tmp_path: Path) -> None:
    """What a worker has on its way when it dies lands seconds later, and its successor is fast.

    Without the fence (Image.lock) older data overwrites newer, and the program finds it.
    """
    with loop(tmp_path) as device:
        disks = [f"{device},cache=none"]
        with kvmpv.Domain(vcpus=2, memory=128 * MIB, disks=disks, rng="off") as domain:
            start_verifying(domain, "vda")
            with slow_writes(int(domain.devices()[0]["pid"]), device, 2048):
                written = domain.stats()["device0_writes"]
                while domain.stats()["device0_writes"] < written + 8:
                    alive(domain)
                kill(domain)
            end_verifying(domain, "vda")


@contextmanager
def mapped(table: str) -> Iterator[str]:
    """Make a block device of a device mapper's table."""
    subprocess.run(["modprobe", "dm-mod"], check=True)
    name = f"kvmpv-{os.getpid()}"
    try:
        dmsetup("create", "--noudevsync", name, table=table)
        dmsetup("mknodes", name)
        yield f"/dev/mapper/{name}"
    finally:
        dmsetup("remove", "--noudevsync", "--retry", name)


def test_failing_disk_costs_the_guest_those_requests_and_no_others(tmp_path: Path) -> None:
    half = SIZE // 512 // 2
    with (
        loop(tmp_path) as device,
        mapped(f"0 {half} linear {device} 0\n{half} {half} error") as disk,
    ):
        disks = [f"{disk},cache=none", str(image(tmp_path, "other.img"))]
        with kvmpv.Domain(memory=128 * MIB, disks=disks, rng="off") as domain:
            write = "dd if=/dev/urandom of=/dev/{} bs=64k seek={} count=4 conv=fsync"
            assert domain.exec(write.format("vda", 0)).status == 0
            failed = domain.exec(write.format("vda", SIZE // 65536 - 4))
            assert failed.status == 1
            assert b"Input/output error" in failed.stderr
            assert domain.exec(write.format("vda", 4)).status == 0
            assert domain.exec(write.format("vdb", 60)).status == 0
            assert "I/O error, dev vda" in str(domain.exec("dmesg"))
            assert domain.devices()[0]["restarts"] == "0"
