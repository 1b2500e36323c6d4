"""A worker's process under test: started as the toolstack starts it, always ended."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kvmpv.dom0.orders import escape
from kvmpv.vhostuser.frontend import Frontend
from tests.unit.vhostuser.peer import raw

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

SYS_POLL = 7  # where an event loop that is busy waits by epoll_wait
PROGRAM = Path(__file__).parents[3] / "kvmpv/dom0/__main__.py"


class Worker:
    """A worker with devices, a front end for each, its control socket and its log.

    Its one device waits for front ends at ``listen`` instead, if that is given.
    """

    def __init__(
        self,
        folder: Path,
        *devices: str,
        fds: Sequence[int] = (),
        listen: socket.socket | None = None,
        **options: int,
    ) -> None:
        self.log_path = folder / "worker.log"
        self.path = folder / "control"
        self.frontends: list[socket.socket] = []
        given: list[socket.socket] = []
        words = [f"{key}={value}" for key, value in options.items()]
        for number, text in enumerate(devices):
            kind, _, rest = text.partition(",")
            if listen is not None:
                given.append(listen.dup())
            else:
                ours, theirs = socket.socketpair()
                self.frontends.append(ours)
                given.append(theirs)
            fd = f"{'listen=' if listen else ''}{given[-1].fileno()}"
            words.append(f"device={number},{kind},{fd}" + (f",{rest}" if rest else ""))
        self.path.unlink(missing_ok=True)
        control = socket.socket(socket.AF_UNIX)
        control.bind(str(self.path))
        control.listen()
        self.lifeline, theirs = socket.socketpair()
        ready, ready_theirs = socket.socketpair()
        given += [control, theirs, ready_theirs]
        names = ("control", "lifeline", "ready")
        ends = (control, theirs, ready_theirs)
        words += [f"{name}={one.fileno()}" for name, one in zip(names, ends, strict=True)]
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", PROGRAM, "name=test", *words],
                pass_fds=[*(one.fileno() for one in given), *fds],
                stderr=log,
            )
        for one in given:
            one.close()
        ready.settimeout(20)
        self.ready = ready.makefile().readline().strip()
        ready.close()
        self.control = socket.socket(socket.AF_UNIX)
        self.control.settimeout(10)
        if self.ready == "ok":
            self.control.connect(str(self.path))

    def frontend(self, number: int = 0, timeout: float = 10) -> Frontend:
        """Return the front end of a device; once."""
        return Frontend(raw(self.frontends[number]), timeout)

    def ask(self, line: str, *fds: int) -> str:
        """Send a line to the control socket and return its answer."""
        socket.send_fds(self.control, [f"{line}\n".encode()], fds)
        return self.control.makefile().readline().strip()

    def stats(self) -> dict[str, int]:
        """Return the worker's counters."""
        words = self.ask("stats").split()
        assert words[0] == "ok"
        return {key: int(value) for key, _, value in (word.partition("=") for word in words[1:])}

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def cpu_seconds(self) -> float:
        """Return the time that its threads have run."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def wait(self, seconds: float = 20) -> int:
        """Wait for its end; return its status."""
        return self.process.wait(seconds)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.control.close()
        self.lifeline.close()
        for one in self.frontends:
            one.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def option(key: str, value: object) -> str:
    """Return an option as a device's orders have it."""
    return f"{key}={escape(str(value))}"


def rests(pid: int) -> bool:
    """Say whether a process has found nothing to do for a while: it waits as kvmpv/_rest does."""
    return Path(f"/proc/{pid}/syscall").read_text().split()[0] == f"{SYS_POLL}"
