"""scripts/bench net-backend: packets through a tap, our worker against QEMU in user space.

The same driver loop (net_driver.h) keeps both busy: natively in front of our worker by vhost-user,
as a bare guest of QEMU's, emulated. Packets are counted by the tap, and the time is that of the
backend's own threads on a processor, a packet: the driver's costs, and who else is on the machine,
stay out of it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from kvmpv.errors import HostError
from kvmpv.hostnet import links, tap
from scripts.tools.bench import namespace
from scripts.tools.bench.figures import Figure, interleaved
from scripts.tools.place import CHECKOUT

SOURCES = CHECKOUT / "scripts" / "bench.d"
WORKER = CHECKOUT / "kvmpv" / "dom0" / "__main__.py"
PEER = "QEMU virtio-net, user space"
GOAL = round(1 / 1.1, 3)
SETTLE, SECONDS = 0.8, 1.0
SMALL, LARGE = 64, 65226


class Job(NamedTuple):
    """What is sent: by the driver (``send``) or to it (``receive``), in frames of so many bytes."""

    direction: str
    frame: int

    @property
    def name(self) -> str:
        """The job as the table names it."""
        what = "64-byte frames" if self.frame == SMALL else "64 KiB segments"
        return f"tap, {what}, {self.direction}"

    @property
    def bytes(self) -> int:
        """How large the driver's buffers are."""
        if self.direction == "send":
            return self.frame
        return 1536 if self.frame == SMALL else 4096


JOBS = [Job(direction, frame) for direction in ("send", "receive") for frame in (SMALL, LARGE)]


def figures(rounds: int) -> list[Figure]:
    """Measure all jobs on both, in turn."""
    with tempfile.TemporaryDirectory(prefix="kvmpv-bench-") as folder:
        client = Path(folder) / "net_client"
        _compile(client, "net_client.c")
        found = []
        for job in JOBS:
            guest = _guest(Path(folder), job)
            theirs, ours = interleaved(
                rounds, *(_side(start, client, guest, job) for start in (_qemu, _worker))
            )
            found.append(Figure(job.name, "us CPU", ours, theirs, PEER, GOAL))
        return found


def _compile(target: Path, source: str, *options: str) -> None:
    command = ["gcc", "-O2", *options, "-o", str(target), str(SOURCES / source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HostError(f"{source} cannot be compiled: {done.stderr.splitlines()[0]}")


def _guest(folder: Path, job: Job) -> Path:
    """Build the driver as a 32-bit PVH kernel."""
    target = folder / f"guest-{job.direction}-{job.frame}"
    _compile(
        target, "net_guest.c", "-m32", "-ffreestanding", "-fno-pic", "-no-pie", "-nostdlib",
        "-fno-stack-protector", "-static", "-Wl,--build-id=none", "-Wl,-N", "-Wl,-Ttext=0x100000",
        f"-DTRANSMIT={int(job.direction == 'send')}", f"-DBYTES={job.bytes}",
    )  # fmt: skip
    return target


class Running(NamedTuple):
    """A backend at work: its process, and which of its threads are the driver's, not its own."""

    process: int
    foreign: str


Start = Callable[[ExitStack, int, Path, Path, Job], Running]


def _side(start: Start, client: Path, guest: Path, job: Job) -> Callable[[], float]:
    def measure() -> float:
        with ExitStack() as stack:
            inside = stack.enter_context(namespace.thread())
            name, fds = inside.submit(tap.make, 1).result()
            stack.callback(os.close, fds[0])
            inside.submit(links.no_addresses, name).result()
            inside.submit(links.set_up, name).result()
            running = start(stack, fds[0], client, guest, job)
            if job.direction == "receive":
                flood = [str(client), name, "flood", str(job.frame)]
                stack.callback(_end, inside.submit(subprocess.Popen, flood).result())
            time.sleep(SETTLE)
            return _cost(inside, name, running, job)

    return measure


def _worker(stack: ExitStack, fd: int, client: Path, _guest: Path, job: Job) -> Running:
    ours, theirs = (stack.enter_context(one) for one in socket.socketpair())
    order = f"device=0,net,{theirs.fileno()},tapfds={fd},vhost=off"
    worker = subprocess.Popen(
        [sys.executable, "-I", "-S", WORKER, "name=bench", order],
        pass_fds=[theirs.fileno(), fd],
        stdin=subprocess.DEVNULL,
    )
    stack.callback(_end, worker)
    driver = [str(client), str(ours.fileno()), job.direction, str(job.bytes)]
    stack.callback(_end, subprocess.Popen(driver, pass_fds=[ours.fileno()]))
    return Running(worker.pid, "")


def _qemu(stack: ExitStack, fd: int, _client: Path, guest: Path, _job: Job) -> Running:
    emulator = subprocess.Popen(
        ["qemu-system-x86_64", "-M", "microvm,rtc=off,pit=off,pic=off", "-accel", "tcg",
         "-cpu", "max", "-m", "256", "-name", "bench,debug-threads=on", "-nodefaults",
         "-no-user-config", "-display", "none", "-global", "virtio-mmio.force-legacy=false",
         "-kernel", guest, "-netdev", f"tap,id=n,fd={fd},vhost=off",
         "-device", "virtio-net-device,netdev=n"],
        pass_fds=[fd],
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    stack.callback(_end, emulator)
    return Running(emulator.pid, "CPU ")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _cost(inside: ThreadPoolExecutor, name: str, running: Running, job: Job) -> float:
    """Return the microseconds that the backend's threads take for a packet."""
    before = inside.submit(_packets, name, job).result(), _ran(running)
    time.sleep(SECONDS)
    after = inside.submit(_packets, name, job).result(), _ran(running)
    if after[0] - before[0] < 100:
        raise HostError(f"{job.name}: no packets pass", hint="run it again")
    return (after[1] - before[1]) / 1e3 / (after[0] - before[0])


def _packets(name: str, job: Job) -> int:
    thread = threading.get_native_id()
    for line in Path(f"/proc/self/task/{thread}/net/dev").read_text().splitlines():
        interface, _, numbers = line.partition(":")
        if interface.strip() == name:
            return int(numbers.split()[1 if job.direction == "send" else 9])
    raise HostError(f"the tap {name} is gone")


def _ran(running: Running) -> int:
    """Return the nanoseconds that the backend's threads have run."""
    total = 0
    for task in Path(f"/proc/{running.process}/task").iterdir():
        if not running.foreign or not (task / "comm").read_text().startswith(running.foreign):
            total += int((task / "schedstat").read_text().split()[0])
    return total
