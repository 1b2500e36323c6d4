"""Long steps: a progress bar on a terminal, one line before and after elsewhere; all on stderr."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from typing import IO, TYPE_CHECKING

from scripts.tools.place import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Meter = Callable[[str], float | None]

BAR = 24
REDRAW = 0.2


class StepFailed(Exception):
    """Carry the log of a command that failed to whoever can say what that means."""

    def __init__(self, title: str, status: int, log: Path) -> None:
        super().__init__(f"{title} failed with status {status}")
        self.title, self.status, self.log = title, status, log

    def last_line(self, *wanted: str) -> str:
        """Find the log's last line with the first of ``wanted`` that it holds, else its last."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines()]
        lines = [line for line in lines if line] or ["no output"]
        hits = ([line for line in lines if word in line] for word in (*wanted, ""))
        return next(found for found in hits if found)[-1]


class Step:
    """Show one step's way; ``update`` takes the part that is done, from 0 to 1."""

    def __init__(self, title: str, log: Path, out: IO[str] | None = None) -> None:
        self.title, self.log = title, log
        self._out = out or sys.stderr
        self._live = self._out.isatty() and os.environ.get("TERM", "") != "dumb"
        self._start = time.monotonic()
        self._done = 0.0
        self._drawn = 0.0
        if not self._live:
            self._say(f"kvmpv: {title} (log: {log})\n")
        self.update(0.0)

    def update(self, done: float | None) -> None:
        """Redraw, at most a few times a second; None says that time has passed, no more."""
        self._done = max(self._done, min(1.0, done or 0.0))
        now = time.monotonic()
        if not self._live or now - self._drawn < REDRAW:
            return
        self._drawn = now
        full = round(BAR * self._done)
        bar = "█" * full + "░" * (BAR - full)
        width = os.get_terminal_size(self._out.fileno()).columns
        line = f"{self.title} {bar} {self._done:4.0%} {now - self._start:.0f} s  log: {self.log}"
        self._say(f"\r\x1b[K{line[: max(20, width - 1)]}")

    def end(self, word: str = "done") -> None:
        """Close the step with one word and its time."""
        took = time.monotonic() - self._start
        lead = "\r\x1b[K" if self._live else "kvmpv: "
        self._say(f"{lead}{self.title}: {word} in {took:.1f} s\n")

    def _say(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def run_step(title: str, log: Path, argv: list[str], meter: Meter = lambda _line: None) -> None:
    """Run a command in the checkout behind a progress bar, with all its output in ``log``.

    ``meter`` turns a line of output into the part that is done. Raises StepFailed.
    """
    step = Step(title, log)
    with log.open("wb") as sink:
        sink.write(f"$ {' '.join(argv)}\n".encode())
        sink.flush()
        try:
            status = _follow(step, sink, argv, meter)
        except OSError as error:
            sink.write(f"{error}\n".encode())
            status = 127
    step.end("done" if status == 0 else "failed")
    if status != 0:
        raise StepFailed(title, status, log)


def _follow(step: Step, sink: IO[bytes], argv: list[str], meter: Meter) -> int:
    null, pipe, both = subprocess.DEVNULL, subprocess.PIPE, subprocess.STDOUT
    with subprocess.Popen(argv, cwd=CHECKOUT, stdin=null, stdout=pipe, stderr=both) as child:
        assert child.stdout is not None
        out, rest = child.stdout.fileno(), b""
        while True:
            if not select.select([out], [], [], REDRAW)[0]:
                step.update(None)
                continue
            data = os.read(out, 1 << 16)
            if not data:
                return child.wait()
            sink.write(data)
            sink.flush()
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                step.update(meter(line.decode(errors="replace")))
