"""Natively, with small guests: how long a start takes, and what Python adds to a hypercall."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.tools.bench import qemu
from scripts.tools.bench.figures import Figure, interleaved
from scripts.tools.place import BUILD, CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Callable

KVMPV = str(BUILD / "bin" / "kvmpv")
FIRMWARE = BUILD / "firmware"
SOURCES = CHECKOUT / "scripts" / "bench.d"
CALLS = 100000


def figures(rounds: int) -> list[Figure]:
    """Measure all of it."""
    with tempfile.TemporaryDirectory(prefix="kvmpv-bench-") as folder:
        return [*_start_up(rounds, Path(folder)), _call(rounds, Path(folder))]


def _start_up(rounds: int, folder: Path) -> list[Figure]:
    kernel = qemu.build_pvh_exit(folder, SOURCES / "pvh_exit.S")
    exit_device = ["-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
    peer = [*qemu.arguments(kernel, memory=64, cpu="qemu64"), *exit_device]
    own = [KVMPV, "run", "--kernel", str(FIRMWARE / "first"), "-m", "64M"]
    times: list[dict[str, int]] = []

    def vmm() -> float:
        said = subprocess.run(
            [*own, "--json"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
        )
        times.append(json.loads(said.stderr)["stats"])
        return times[-1]["ns_to_run"] / 1e6

    theirs, ours, first_run = interleaved(rounds, _wall(peer, 1), _wall(own, 0), vmm)
    name = f"QEMU {qemu.version()} microvm"
    found = [
        Figure("VMM, exec to first KVM_RUN", "ms", first_run, theirs, name, 0.8),
        Figure("kvmpv run, whole", "ms", ours, theirs, name, 2.0),
    ]
    before = 0.0
    for key in [key for key in times[0] if key.startswith("ns_to_")]:
        middle = sorted(each[key] for each in times)[len(times) // 2] / 1e6
        found.append(Figure(f"  of it, up to '{key[6:]}'", "ms", middle - before, 0, "", 0))
        before = middle
    return found


def _wall(argv: list[str], status: int) -> Callable[[], float]:
    def run() -> float:
        start = time.monotonic()
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if done.returncode != status:
            raise RuntimeError(f"{argv[0]}: {done.stderr.decode()}")
        return (time.monotonic() - start) * 1e3

    return run


def _call(rounds: int, folder: Path) -> Figure:
    """Run the same guest loop under a bare C program and under kvmpv; compare processor time."""
    bare, guest = folder / "port_exit", folder / "calls"
    subprocess.run(["gcc", "-O2", "-o", bare, SOURCES / "port_exit.c"], check=True)
    subprocess.run(
        ["gcc", "-nostdlib", "-static", "-Wl,--build-id=none", "-Wl,-z,noexecstack",
         "-Wl,-N", "-Wl,--no-warn-rwx-segments",
         "-Wl,-Ttext=0x100000", f"-DCALLS={CALLS}", "-o", guest,
         SOURCES / "calls.S"],
        check=True,
    )  # fmt: skip
    command = [KVMPV, "run", "--kernel", str(guest), "-m", "16M", "--json"]

    def ours() -> float:
        said = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
        )
        stats = json.loads(said.stderr)["stats"]
        return float(stats["cpu_ns"]) / CALLS / 1e3

    def theirs() -> float:
        said = subprocess.run([bare, str(CALLS)], capture_output=True, text=True, check=True)
        return float(said.stdout) / 1e3

    peer, own = interleaved(rounds, theirs, ours)
    added = own - peer
    name = f"Python, added to a hypercall ({own:.2f} us, bare C exit {peer:.2f} us)"
    return Figure(name, "us", added, 0, "", 2.0)
