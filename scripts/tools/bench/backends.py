"""Two block backends side by side, each behind a vhost-user socket, and one client for both."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from kvmpv.errors import HostError
from scripts.tools.place import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Iterator

WORKER = CHECKOUT / "kvmpv" / "dom0" / "__main__.py"
CLIENT = CHECKOUT / "scripts" / "bench.d" / "blk_client.c"
NULL_SIZE = 1 << 30
_STARTS_WITHIN = 10.0


class Backend:
    """One backend's process; ``image`` is empty for the null device."""

    def __init__(self, name: str, folder: Path, image: str) -> None:
        self.name = name
        self.socket = folder / f"{name}-{'file' if image else 'null'}.sock"
        self.log = self.socket.with_suffix(".log").open("wb")
        self.process = self._start(image)

    def _start(self, image: str) -> subprocess.Popen[bytes]:
        raise NotImplementedError

    def cpu_ns(self) -> float:
        """Return what it has run so far, with the threads that have ended since."""
        # linux/posix-timers.h, MAKE_PROCESS_CPUCLOCK with CPUCLOCK_SCHED
        return float(time.clock_gettime_ns(~self.process.pid << 3 | 2))

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
        self.socket.unlink(missing_ok=True)


class Worker(Backend):
    """Ours, with the one device."""

    def _start(self, image: str) -> subprocess.Popen[bytes]:
        subject = f"path={image},cache=none" if image else f"null={NULL_SIZE}"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.socket))
            listener.listen()
            order = f"device=0,blk,listen={listener.fileno()},{subject},queues=1"
            return subprocess.Popen(
                [sys.executable, "-I", "-S", WORKER, "name=bench", order],
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=self.log,
            )


class StorageDaemon(Backend):
    """QEMU's, in the way that is fastest: a thread of its own for the export, io_uring."""

    def _start(self, image: str) -> subprocess.Popen[bytes]:
        program = shutil.which("qemu-storage-daemon")
        if program is None:
            raise HostError("no qemu-storage-daemon", hint="apt-get install qemu-system-common")
        node = (
            f"driver=raw,node-name=n,file.driver=file,file.filename={image},"
            "file.cache.direct=on,file.aio=io_uring"
            if image
            else f"driver=null-co,node-name=n,size={NULL_SIZE}"
        )
        export = (
            "type=vhost-user-blk,id=e,node-name=n,writable=on,num-queues=1,iothread=t,"
            f"addr.type=unix,addr.path={self.socket}"
        )
        child = subprocess.Popen(
            [program, "--object", "iothread,id=t", "--blockdev", node, "--export", export],
            stdin=subprocess.DEVNULL,
            stderr=self.log,  # each client that goes without a word is a complaint
        )
        until = time.monotonic() + _STARTS_WITHIN
        while not self.socket.exists():
            if child.poll() is not None or time.monotonic() > until:
                said = Path(self.log.name).read_text().strip()
                raise HostError("qemu-storage-daemon does not start", hint=said)
            time.sleep(0.01)
        return child


class Job:
    """One thing to do with a backend: its line in the table says the same."""

    def __init__(self, image: bool, op: str, sequential: bool, block: int, depth: int) -> None:
        self.image = image
        self.op = op
        self.sequential = sequential
        self.block = block
        self.depth = depth

    @property
    def name(self) -> str:
        """The job as the table names it."""
        where = "O_DIRECT file" if self.image else "null"
        order = "sequential" if self.sequential else "random"
        return f"{where}, {self.block >> 10} KiB {order} {self.op}, depth {self.depth}"


class Sample:
    """What one run cost: rates and counts for each request."""

    def __init__(self, words: dict[str, float], backend_ns: float) -> None:
        requests = max(1.0, words["requests"])
        self.iops = words["iops"]
        self.cpu_ns = backend_ns / requests
        self.kicks = words["kicks"] / requests
        self.signals = words["signals"] / requests


def build_client(folder: Path) -> Path:
    """Compile the client that both sides get."""
    program = folder / "blk_client"
    subprocess.run(["gcc", "-O2", "-o", program, CLIENT], check=True)
    return program


def run(client: Path, backend: Backend, job: Job, seconds: float, size: int) -> Sample:
    """Drive a backend for some seconds."""
    before = backend.cpu_ns()
    words = dict(_client(client, backend, job, seconds, size))
    return Sample(words, backend.cpu_ns() - before)


def _client(
    client: Path, backend: Backend, job: Job, seconds: float, size: int
) -> Iterator[tuple[str, float]]:
    argv = [str(client), str(backend.socket), job.op, str(int(job.sequential)), str(job.block),
            str(job.depth), str(seconds), str(size)]  # fmt: skip
    # As a guest without a busy driver does it: it sleeps until it is told.
    done = subprocess.run([*argv, "event"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise HostError(f"{backend.name}, {job.name}: {done.stderr.strip()}", hint="run it again")
    for word in done.stdout.split():
        key, _, value = word.partition("=")
        yield key, float(value)


def syscalls(client: Path, backend: Backend, job: Job, size: int) -> float:
    """Count a backend's system calls for each request, in a run that is not timed."""
    strace = shutil.which("strace")
    if strace is None:
        raise HostError("no strace", hint="apt-get install strace")
    argv = [strace, "-f", "-c", "-S", "calls", "-p", str(backend.process.pid)]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        while "attached" not in (line := tracer.stderr.readline()) and line:
            pass
        words = dict(_client(client, backend, job, 0.5, size))
        tracer.send_signal(2)
        text = tracer.stderr.read()
    found = re.search(r"^100\.00 +\S+ +(?:\S+ +)?(\d+)(?: +\d+)? total$", text, re.MULTILINE)
    return float(found[1]) / max(1.0, words["requests"]) if found else 0.0
