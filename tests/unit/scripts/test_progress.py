from __future__ import annotations

import io
from typing import TYPE_CHECKING

from scripts.tools.progress import Step, StepFailed

if TYPE_CHECKING:
    from pathlib import Path


def test_step_off_a_terminal_is_two_plain_lines(tmp_path: Path) -> None:
    out = io.StringIO()
    step = Step("guest kernel", tmp_path / "kernel.log", out)
    for part in (0.1, 0.5, 1.0):
        step.update(part)
    step.end()
    first, last = out.getvalue().splitlines()
    assert first == f"kvmpv: guest kernel (log: {tmp_path}/kernel.log)"
    assert last.startswith("kvmpv: guest kernel: done in ")


def test_failure_quotes_the_line_that_tells_most(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("fine\nerror: no such thing\nbye\n\n")
    failed = StepFailed("x", 1, log)
    assert failed.last_line("error:") == "error: no such thing"
    assert failed.last_line("absent") == "bye"
