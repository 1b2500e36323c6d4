"""The end of a run: slow tests, ceilings, retries, failures, and the sum in the last line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scripts.tools.place import BUILD, write_whole
from scripts.tools.suite import budget

if TYPE_CHECKING:
    from scripts.tools.suite.results import Verdict
    from scripts.tools.suite.runner import Run

SLOWEST = 10
MAX_RETRIES = 2


def report(run: Run, seconds: float) -> bool:
    """Print the report; tell whether the run passed."""
    verdicts = [verdict for results in run.results for verdict in results.verdicts.values()]
    _slowest(verdicts)
    _keep_times(run)
    shares = budget.load()
    for line in _over(run, shares):
        print(f"warning: {line}")
    overdrawn = budget.overdrawn(shares)
    for share in shares:
        print(
            f"budget: {share.name}: ceilings {budget.total(share, shares):.0f} s "
            f"of {share.seconds:.0f} s; this run took {seconds:.0f} s"
        )
    print(f"box retries: {run.retries}")
    failed = [verdict for verdict in verdicts if verdict.outcome == "failed"]
    for verdict in failed:
        print(f"failed: {verdict.place}: {verdict.test}{verdict.why and ': '}{verdict.why}")
    troubles = [*run.troubles, *overdrawn]
    if run.retries > MAX_RETRIES:
        troubles.append(f"{run.retries} box retries: more than {MAX_RETRIES}")
    for trouble in troubles:
        print(f"failed: {trouble}")
    _sum(verdicts)
    return not (failed or troubles)


def _keep_times(run: Run) -> None:
    """Leave every file's seconds in build/test-times, for whoever sets ceilings."""
    rows = [
        f"{seconds:8.2f} {results.place} {file}\n"
        for results in run.results
        for file, seconds in results.by_file().items()
    ]
    write_whole(BUILD / "test-times", "".join(sorted(rows, reverse=True)))


def _slowest(verdicts: list[Verdict]) -> None:
    print(f"\nslowest {SLOWEST}:")
    for verdict in sorted(verdicts, key=lambda one: -one.seconds)[:SLOWEST]:
        print(f"  {verdict.seconds:7.2f} s  {verdict.place:5} {verdict.test}")


def _over(run: Run, shares: list[budget.Share]) -> list[str]:
    """Say which files, and which fixed costs, went over their ceilings."""
    taken = [("fixed", name, seconds) for name, seconds in run.fixed.items()]
    for results in run.results:
        if results.place in budget.PLACES:
            taken += [(results.place, file, took) for file, took in results.by_file().items()]
    lines = []
    for place, name, seconds in taken:
        ceiling = budget.ceiling(shares, place, name)
        if ceiling is None:
            lines.append(f"{place} {name} has no ceiling in {budget.PATH.name}")
        elif seconds > ceiling:
            lines.append(f"{place} {name} took {seconds:.1f} s, its ceiling is {ceiling:g} s")
    return lines


def _sum(verdicts: list[Verdict]) -> None:
    count = {"passed": 0, "failed": 0, "skipped": 0}
    for verdict in verdicts:
        count[verdict.outcome] += 1
    skipped = f", {count['skipped']} skipped" if count["skipped"] else ""
    print(f"{count['passed']} passed, {count['failed']} failed{skipped}", flush=True)
