"""scripts/test [check|fast|host|box] [pytest arguments].

    (nothing)  every test there is on this machine
    check      lint, types and the rules of the tree
    fast       check, unit, and what runs on the host without the dev box
    host       only what runs on the host, the dev box's own tests among it
    box        only what runs in the dev box

Paths and options of pytest may follow; with paths alone, those run, where they belong.
"""

from __future__ import annotations

import signal
import sys
import time

from scripts.tools.suite import runner
from scripts.tools.suite.budget import PLACES
from scripts.tools.suite.report import report

FAST = ("unit", "style", "host", "kvm")


def main(args: list[str]) -> int:
    """Run what was asked for and report it."""
    tier = args.pop(0) if args and args[0] in ("check", "fast", "host", "box") else ""
    if args and args[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    # A job of a shell without job control ignores Ctrl-C, and so would all that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run = runner.Run()
    start = time.monotonic()
    try:
        if any(arg.startswith("tests") for arg in args):
            _some(run, tier, args)
        else:
            _tiers(run, tier, args)
    except KeyboardInterrupt:
        run.troubles.append("interrupted")
    return 0 if report(run, time.monotonic() - start) else 1


def _tiers(run: runner.Run, tier: str, more: list[str]) -> None:
    if tier in ("", "check", "fast"):
        runner.check(run)
    if tier == "check":
        runner.host(run, more, runner.paths(("style",)))
    elif tier != "box":
        runner.images(run)
        runner.host(run, more, runner.paths(FAST))
    if tier in ("", "host"):
        runner.host(run, more, runner.paths(("devbox",)))
    if tier in ("", "box"):
        runner.box(run, more, runner.paths(PLACES["box"]))
    if tier == "":
        runner.second_build(run)


def _some(run: runner.Run, tier: str, args: list[str]) -> None:
    """Run the tests at some paths: tests/boot in the box, the others on the host unless asked."""
    paths = [arg for arg in args if arg.startswith("tests")]
    more = [arg for arg in args if not arg.startswith("tests")]
    inside = [path for path in paths if tier == "box" or path.startswith("tests/boot")]
    outside = [path for path in paths if path not in inside]
    if outside:
        runner.host(run, more, outside)
    if inside:
        runner.box(run, more, inside)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
