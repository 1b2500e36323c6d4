"""Run the kvmpv command as a user does, and see what it leaves behind."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
KVMPV = str(ROOT / "build/bin/kvmpv")
PATIENCE = 60.0  # seconds; the dev box is slow
IN_BOX = bool(os.environ.get("KVMPV_BOX"))

Test = TypeVar("Test", bound="Callable[..., None]")


def once(test: Test) -> Test | None:
    """Keep a test to the host: it is about processes, and the box's other KVM has no part in it."""
    return None if IN_BOX else test


class Command:
    """The command with folders of its own for running domains and for crash reports."""

    def __init__(self, folder: Path) -> None:
        self.domains = folder / "run" / "kvmpv"
        self.crashes = folder / "state" / "kvmpv" / "crashes"
        self.environment = {
            **os.environ,
            "KVMPV_RUN_DIR": str(self.domains.parent),
            "XDG_STATE_HOME": str(folder / "state"),
            "XDG_CACHE_HOME": str(folder / "cache"),
        }

    def run(self, *arguments: str, before: tuple[str, ...] = ()) -> Ended:
        """Run it to its end; ``before`` is a command that runs it."""
        child = self.start(*arguments, before=before)
        try:
            out, err = child.communicate(timeout=PATIENCE)
        finally:
            child.kill()
        return Ended(child.pid, child.returncode, out, err)

    def start(self, *arguments: str, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """Start it, with pipes for its output and nothing to read."""
        return subprocess.Popen(
            [*before, KVMPV, *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def left(self, pid: int) -> list[str]:
        """Say what the command that was process ``pid``, or its domains, have left behind."""
        found = [str(path) for path in self.crashes.glob("*")] + [
            str(path) for path in self.domains.glob("*")
        ]
        sockets = Path("/proc/net/unix").read_text().splitlines()
        found += [line for line in sockets if str(self.domains) in line]
        return found + [f"process {other}" for other in processes(pid)]

    def nothing_is_left(self, pid: int) -> bool:
        """Wait until nothing is left: a killed domain needs a moment."""
        deadline = time.monotonic() + PATIENCE
        while self.left(pid):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True


class Ended:
    """How a command ended."""

    def __init__(self, pid: int, status: int, out: str, err: str) -> None:
        self.pid = pid
        self.status = status
        self.out = out
        self.err = err


def processes(owner: int) -> list[int]:
    """List the processes of the domains that process ``owner`` started, by the name they have."""
    mark = f"\0name=domain-{owner}-".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                arguments = (folder / "cmdline").read_bytes()
            except OSError:
                continue  # it has just ended
            if mark in arguments:
                found.append(int(folder.name))
    return found
