"""The runner keeps the verdicts of a lost box, and never blames a test for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.tools.suite import report, runner

TESTS = """
import os
from pathlib import Path

def test_before(): pass

def test_when_the_box_is_lost():
    left = Path({left!r})
    if count := int(left.read_text()):
        left.write_text(str(count - 1))
        os._exit({status})

def test_after(): assert {after}
"""


@pytest.fixture
def run_in_box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run three tests in a stand-in for the dev box that is lost some times."""
    monkeypatch.setattr(runner, "DEVBOX", str(tmp_path / "devbox"))
    monkeypatch.setattr(runner, "build", lambda: None)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def go(losses: int, up: int = 0, after: bool = True, status: int = 126) -> runner.Run:
        script = f'#!/bin/sh\ncase $1 in up) exit {up} ;; run) shift 2 && exec "$@" ;; esac\n'
        (tmp_path / "devbox").write_text(script)
        (tmp_path / "devbox").chmod(0o755)
        (tmp_path / "left").write_text(str(losses))
        file = tmp_path / "test_it.py"
        file.write_text(TESTS.format(left=str(tmp_path / "left"), after=after, status=status))
        run = runner.Run()
        runner.box(run, ["-p", "no:cacheprovider", "-p", "pytest_timeout"], [str(file)])
        return run

    return go


def outcomes(run: runner.Run) -> list[str]:
    return [verdict.outcome for verdict in run.results[0].verdicts.values()]


def test_all_pass_without_a_loss(run_in_box) -> None:
    run = run_in_box(0)
    assert (outcomes(run), run.retries, run.troubles) == (["passed"] * 3, 0, [])


def test_lost_box_is_retried_and_its_verdicts_kept(run_in_box, capfd) -> None:
    run = run_in_box(2)
    assert (outcomes(run), run.retries, run.troubles) == (["passed"] * 3, 2, [])
    # The first test ran once only: each box after the first was told to leave it out.
    assert "1 deselected" in capfd.readouterr().out


def test_third_loss_ends_the_run_as_a_lost_box(run_in_box) -> None:
    run = run_in_box(3)
    assert outcomes(run) == ["passed"]
    assert len(run.troubles) == 1
    assert run.troubles[0].startswith("lost box: in ")
    assert "test_when_the_box_is_lost" in run.troubles[0]
    assert not report.report(run, 1.0)


def test_run_that_breaks_off_is_no_success(run_in_box) -> None:
    run = run_in_box(1, status=1)
    assert outcomes(run) == ["passed"]
    assert len(run.troubles) == 1
    assert not report.report(run, 1.0)


def test_box_that_does_not_come_up_fails_the_run(run_in_box) -> None:
    run = run_in_box(0, up=3)
    assert outcomes(run) == []
    assert run.troubles == ["the dev box did not come up (scripts/devbox up: status 3)"]
    assert not report.report(run, 1.0)


def test_sum_is_the_last_line(run_in_box, capfd) -> None:
    passed = report.report(run_in_box(0, after=False), 1.0)
    assert not passed
    *_, failure, last = capfd.readouterr().out.splitlines()
    assert failure.startswith("failed: box: ")
    assert failure.endswith("test_it.py::test_after: assert False")
    assert last == "2 passed, 1 failed"
