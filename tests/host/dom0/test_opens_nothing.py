"""Once it is ready a worker opens, imports and executes nothing, whatever it is asked to serve.

That is what lets a sandbox be closed around it before the first guest's message.
"""

from __future__ import annotations

import os
import socket
import subprocess
from functools import partial
from pathlib import Path

from kvmpv.vhostuser.frontend import Frontend
from tests.host.dom0.test_vsock import CID, Guest, from_guest
from tests.host.dom0.test_worker import random_bytes, running
from tests.host.dom0.workers import Worker, option
from tests.host.vhostuser.test_other_backends import BLK_IN, BLK_OUT, Disk
from tests.unit.vhostuser.peer import raw
from tests.waiting import until

WATCHED = (
    "open,openat,openat2,creat,memfd_create,pipe2,mkdir,mknod,rename,renameat2"
    ",execve,execveat,fork,vfork"
)


def test_a_ready_worker_opens_nothing(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(1 << 20))
    trace = tmp_path / "trace"
    devices = (
        f"blk,{option('path', tmp_path / 'image')}",
        "rng",
        f"vsock,cid={CID},{option('path', tmp_path / 'v,s')}",
    )
    with Worker(tmp_path, *devices) as worker:
        pid = f"{worker.process.pid}"
        words = ("strace", "-f", "-qq", "-o", trace, "-e", f"trace={WATCHED}", "-p", pid)
        tracer = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        until(lambda: "TracerPid:\t0" not in Path(f"/proc/{pid}/status").read_text())
        live(worker, tmp_path)
        assert worker.ask("terminate") == "ok"
        assert worker.wait() == 0
        tracer.wait(10)
    seen = [line for line in trace.read_text().splitlines() if "exited with" not in line]
    assert seen == []


def live(worker: Worker, folder: Path) -> None:
    """Use all devices, break some, and have them again."""
    disk = Disk(worker.frontend(0))
    disk.request(BLK_OUT, 8, b"x" * 4096)
    assert disk.request(BLK_IN, 8, reads=4096) == b"x" * 4096
    assert worker.ask("resize 0") == "ok changed=no"
    disk.driver.close()
    driver = running(worker.frontend(1))
    random_bytes(driver)
    driver.frontend.reset_device()
    driver.rings[0].offer(9)
    driver.rings[0].give_to(driver.frontend, 0)
    driver.close()
    guest = Guest(worker.frontend(2))
    host = from_guest(folder, guest)
    host.sendall(b"hello")
    assert guest.take()[1] == b"hello"
    host.close()
    guest.close()

    def failed(number: int) -> bool:
        return "failed" in worker.ask("status").split()[1 + number]

    for number in range(3):
        ours, theirs = socket.socketpair()
        assert worker.ask(f"connect {number}", theirs.fileno()) == "ok"
        theirs.close()
        frontend = Frontend(raw(ours), 10)
        frontend.negotiate()
        os.write(frontend.fileno(), b"no message at all, but enough")
        until(partial(failed, number))
        frontend.close()
    ours, theirs = socket.socketpair()
    assert worker.ask("device-remove 1") == "ok"
    assert worker.ask("device-add 1,rng", theirs.fileno()) == "ok"
    ours.close()
    theirs.close()
    worker.stats()
