"""Disks whose worker is killed again and again, while fio writes and verifies in the guest."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import kvmpv
from kvmpv.toolstack import backend

SIZE = 8 << 20
KILLS = 3  # twenty are in test_disk_survival.py, without fio
PATIENCE = 100.0


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with fio and what it is linked to, for a guest that has no libraries."""
    folder = tmp_path_factory.mktemp("tools")
    fio = shutil.which("fio")
    assert fio, "the Debian package fio is missing"
    linked = subprocess.run(["ldd", fio], capture_output=True, text=True, check=True).stdout
    for path in [fio, *re.findall(r"(/\S+) \(0x", linked)]:
        shutil.copy(path, folder)
    return folder


def fio(*options: str) -> str:
    """Return the command line that runs fio in the guest."""
    folder = "/mnt/tools"
    start = f"{folder}/ld-linux-x86-64.so.2 --library-path {folder} {folder}/fio"
    return " ".join([start, "--thread", "--name=job", "--filename=/dev/vda", *options])


def kill_worker(domain: kvmpv.Domain) -> None:
    """Kill the disk's worker as nobody can expect, and wait for the next one."""
    before = domain.devices()[0]
    os.kill(int(before["pid"]), signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    while domain.devices()[0]["restarts"] == before["restarts"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_fio_verifies_what_it_wrote_while_the_worker_is_killed(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "DELAYS", (0.0,))  # so many deaths a minute are not the usual
    image = tmp_path / "d.img"
    image.touch()
    os.truncate(image, SIZE)
    job = fio(
        *("--rw=randwrite", "--bs=4k", f"--size={SIZE}", "--ioengine=libaio", "--iodepth=16"),
        *("--direct=1", "--verify=crc32c", "--verify_fatal=1", "--loops=1000", "--runtime=600"),
    )
    shares = [f"{tools},tag=tools,ro"]
    with (
        kvmpv.Domain(disks=[str(image)], shares=shares, memory="256M") as domain,
        ThreadPoolExecutor() as threads,
    ):
        domain.exec("true")
        running = threads.submit(domain.exec, f"{job} & echo $! >/tmp/fio; wait $!")
        while domain.stats().get("device0_writes", 0) < 64:
            assert not running.done(), running.result()
            time.sleep(0.1)
        for _ in range(KILLS):
            kill_worker(domain)
            assert not running.done(), running.result()
        stats = domain.stats()
        domain.exec("kill -INT $(cat /tmp/fio)")  # it ends the pass that it is at
        done = running.result(PATIENCE)
        assert done.status in (0, 128), done
        assert b"err= 0" in done.stdout, done
        assert domain.exec("dmesg | grep -ci 'vda.*error'").stdout == b"0\n"
    assert stats["backend_restarts"] == KILLS
