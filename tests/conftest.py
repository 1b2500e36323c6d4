"""Mark each test by its folder: what it may assume is where it lies."""

from __future__ import annotations

import functools
import os
from collections.abc import Generator
from pathlib import Path

import pytest

from kvmpv.toolstack import rundir

TESTS = Path(__file__).parent


def crash_reports() -> set[Path]:
    folder = rundir.crash_folder()
    try:
        return {Path(folder, name) for name in os.listdir(folder)}
    except OSError:
        return set()


reports_seen = crash_reports()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(TESTS):
            item.add_marker(item.path.relative_to(TESTS).parts[0])


def pytest_pycollect_makemodule(module_path: Path) -> None:
    # Before the module is imported, for it may derive settings of its own; and only if it does
    # use hypothesis, which takes seconds to import in the box.
    if "hypothesis" in module_path.read_text():
        load_hypothesis_profile()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the crash reports of guests that died in a test that fails: the box keeps no files."""
    report = yield
    new = crash_reports() - reports_seen
    reports_seen.update(new)
    if report.failed:
        report.sections += [
            (f"crash report {path.name}", path.read_text(errors="replace")) for path in sorted(new)
        ]
    return report


@functools.cache
def load_hypothesis_profile() -> None:
    """Try fewer examples in the box; no example has a deadline: the machine does other work too."""
    from hypothesis import settings

    settings.register_profile("host", deadline=None, max_examples=50)
    settings.register_profile("box", deadline=None, max_examples=10)
    settings.load_profile("box" if os.environ.get("KVMPV_BOX") else "host")
