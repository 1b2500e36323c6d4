from __future__ import annotations

import json

import pytest

from scripts.tools.suite.results import Results, Splitter


def record(**fields: object) -> bytes:
    return b"\x1e" + json.dumps(fields).encode() + b"\n"


STREAM = (
    b"tests/boot/test_a.py "
    + record(event="start", id="a::one")
    + record(event="end", id="a::one", outcome="passed", seconds=1.0)
    + b"."
    + record(event="time", id="a::one", seconds=1.5)
    + record(event="start", id="a::two")
    + b"\nlost"
)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_stream_is_parted_wherever_it_is_cut(size: int) -> None:
    results = Results("box")
    splitter = Splitter(results)
    shown = b"".join(splitter.feed(STREAM[at : at + size]) for at in range(0, len(STREAM), size))
    assert shown == b"tests/boot/test_a.py .\nlost"
    assert results.verdicts["a::one"].seconds == 1.5
    assert results.running == "a::two"


def test_failed_tear_down_replaces_a_pass() -> None:
    results = Results("host")
    for outcome in ("passed", "failed"):
        results.take(record(event="end", id="a", outcome=outcome, seconds=1.0)[1:])
    assert results.verdicts["a"].outcome == "failed"


def test_seconds_add_up_by_file() -> None:
    results = Results("host")
    results.add("a.py::one", "passed", 1.0)
    results.add("a.py::two", "failed", 2.0)
    results.add("b.py::one", "passed", 4.0)
    assert results.by_file() == {"a.py": 3.0, "b.py": 4.0}
