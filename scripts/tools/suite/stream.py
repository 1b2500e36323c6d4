"""A pytest plugin that tells each test's start and end on stdout, as it happens.

One record is the byte 0x1e, a JSON object and a newline, in between what pytest itself prints. So
what was known when a box was lost is known to the runner, and no file has to leave the box.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

MARK = b"\x1e"
# Loaded by -p, before pytest captures the standard descriptors.
_OUT = os.dup(1)
_times: dict[str, float] = {}


def _tell(**record: object) -> None:
    os.write(_OUT, MARK + json.dumps(record).encode() + b"\n")


def pytest_runtest_logstart(nodeid: str) -> None:
    """Name the test that a lost box will have died in."""
    _tell(event="start", id=nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Tell the verdict once all three phases are known."""
    _times[report.nodeid] = _times.get(report.nodeid, 0.0) + report.duration
    if report.when == "teardown" or (report.when == "setup" and report.failed):
        took = _times[report.nodeid]
        if report.failed:
            _tell(event="end", id=report.nodeid, outcome="failed", seconds=took, why=_why(report))
        else:
            _tell(event="time", id=report.nodeid, seconds=took)
    elif report.when == "call" or report.skipped:
        expected = report.skipped and hasattr(report, "wasxfail")
        outcome = "passed" if expected else report.outcome
        took = _times[report.nodeid]
        _tell(event="end", id=report.nodeid, outcome=outcome, seconds=took, why=_why(report))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Count a file that cannot be collected as a failure of its own."""
    if report.failed:
        name = report.nodeid or "collection"
        _tell(event="end", id=name, outcome="failed", seconds=0.0, why=_why(report))


def _why(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Give the line that pytest's own summary gives, which a lost box never gets to print."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else report.longreprtext.rpartition("\n")[2]
    return text.partition("\n")[0][:200] if report.failed else ""
