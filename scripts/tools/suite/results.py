"""What the tiers found: verdicts by test, times by file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from scripts.tools.suite.stream import MARK


@dataclass
class Verdict:
    """Hold one test's end, as far as it is known."""

    place: str
    test: str
    outcome: str
    seconds: float
    why: str = ""

    @property
    def file(self) -> str:
        """Name the test's file."""
        return self.test.partition("::")[0]


@dataclass
class Results:
    """Collect the verdicts of one place: the host, the box, or the checks."""

    place: str
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    running: str = ""

    def add(self, test: str, outcome: str, seconds: float, why: str = "") -> None:
        """Note a verdict; a failure in tear-down replaces a pass."""
        self.verdicts[test] = Verdict(self.place, test, outcome, seconds, why)

    def take(self, line: bytes) -> None:
        """Read one record of the stream."""
        record = json.loads(line)
        test, event = str(record["id"]), record["event"]
        if event == "start":
            self.running = test
        elif event == "end":
            why = str(record.get("why", ""))
            self.add(test, str(record["outcome"]), float(record["seconds"]), why)
        elif test in self.verdicts:
            self.verdicts[test].seconds = float(record["seconds"])
            self.running = ""

    def passed(self, file: str) -> bool:
        """Tell whether tests of a file have run, and all of them have passed."""
        outcomes = {one.outcome for one in self.verdicts.values() if one.file == file}
        return outcomes == {"passed"}

    def by_file(self) -> dict[str, float]:
        """Add up the seconds of each file's tests."""
        times: dict[str, float] = {}
        for verdict in self.verdicts.values():
            times[verdict.file] = times.get(verdict.file, 0.0) + verdict.seconds
        return times


class Splitter:
    """Part a stream of bytes into records, for ``results``, and the rest, for people."""

    def __init__(self, results: Results) -> None:
        self._results = results
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Take what came and give what is to be shown."""
        text = self._held + data
        shown = b""
        while True:
            before, mark, after = text.partition(MARK)
            shown += before
            record, newline, rest = after.partition(b"\n")
            if not newline:
                self._held = mark + after
                return shown
            self._results.take(record)
            text = rest
