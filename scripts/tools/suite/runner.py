"""Run the tiers, on this host and in the dev box, and pass on what they print."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from kvmpv.devbox.place import Place
from kvmpv.errors import KvmpvError
from scripts.tools.place import BUILD, CHECKOUT
from scripts.tools.run import build, build_debian
from scripts.tools.suite import kernels
from scripts.tools.suite.report import MAX_RETRIES
from scripts.tools.suite.results import Results, Splitter

PYTHON = str(BUILD / "venv" / "bin" / "python")
DEVBOX = str(CHECKOUT / "scripts" / "devbox")
KVM = Path("/dev/kvm")
LOST = 126  # kvmpv.errors.LostBox.exit_status, which scripts/devbox ends with
NO_TESTS = 5

CHECKS = {
    "ruff": [PYTHON, "-m", "ruff", "check", "--quiet"],
    "format": [PYTHON, "-m", "ruff", "format", "--check", "--quiet"],
    "mypy": [PYTHON, "-m", "mypy", "--strict", "--no-error-summary"],
}


@dataclass
class Run:
    """Hold one run of the suite: what was found where, and what went wrong around it."""

    results: list[Results] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    fixed: dict[str, float] = field(default_factory=dict)
    retries: int = 0
    images: bool | None = None


def check(run: Run) -> None:
    """Lint and check types; each tool counts as one test."""
    results = Results("check")
    run.results.append(results)
    for name, argv in CHECKS.items():
        _title(name)
        start = time.monotonic()
        status = subprocess.run(argv, cwd=CHECKOUT, check=False).returncode
        took = run.fixed[name] = time.monotonic() - start
        results.add(name, "passed" if status == 0 else "failed", took)


def images(run: Run) -> bool:
    """Build what guests boot, once in a run, and here: it would take hours in the box."""
    if run.images is None:
        _title("guest kernel and root file systems")
        start = time.monotonic()
        try:
            build()
            build_debian()
            run.images = True
        except KvmpvError as error:
            run.troubles.append(str(error))
            run.images = False
        run.fixed["images"] = time.monotonic() - start
    return run.images


def second_build(run: Run) -> None:
    """See that the kernel's build gives the same bytes again, where that was not seen before."""
    if not images(run):
        return
    _title("a second build of the guest kernel, if its inputs are new")
    results = Results("check")
    run.results.append(results)
    verdict, took = kernels.second_build()
    if verdict:
        results.add("second build of the guest kernel", verdict, took)


def host(run: Run, more: list[str], paths: list[str]) -> None:
    """Run tests here. Those that need /dev/kvm stay out where there is none."""
    if not KVM.exists() and "tests/kvm" in paths:
        paths.remove("tests/kvm")
        _title("no /dev/kvm on this host: tests/kvm runs in the dev box only")
    if paths:
        retries = _box_retries()
        results = Results("host")
        run.results.append(results)
        _title(f"on this host: {' '.join(paths)}")
        status = _pytest([], [*paths, *more], results)
        run.retries += _box_retries() - retries
        _judge(run, results, status)


def box(run: Run, more: list[str], paths: list[str]) -> None:
    """Run tests in the dev box, all in one process; a lost box is replaced by a fresh one.

    Tests that had ended when a box was lost keep their verdict; the others run again.
    """
    results = Results("box")
    run.results.append(results)
    if not images(run):
        return
    debug = _debug_kernel(run, paths)
    left_out = [] if debug else [f"--ignore={kernels.DEBUG_TEST}"]
    if not _box_up(run):
        return
    _compile(paths)
    while True:
        done = [f"--deselect={test}" for test in results.verdicts] + left_out
        _title(f"in the dev box: {' '.join(paths)}")
        start, before = time.monotonic(), _seconds(results)
        status = _pytest([DEVBOX, "run", "--"], [*paths, *done, *more], results)
        # Starting and collecting, which the box takes its time for.
        run.fixed["box-pytest"] = time.monotonic() - start - (_seconds(results) - before)
        if status != LOST:
            _judge(run, results, status)
            if debug and results.passed(kernels.DEBUG_TEST):
                kernels.remember_debug()
            return
        place = f"in {results.running}" if results.running else "between tests"
        if run.retries >= MAX_RETRIES:
            run.troubles.append(f"lost box: {place}, after {run.retries} retries")
            return
        run.retries += 1
        _title(f"lost box: {place}; going on in a fresh one")


def _debug_kernel(run: Run, paths: list[str]) -> bool:
    """Have the debug kernel there if its test is to run among these, and say whether it is."""
    try:
        return kernels.debug_is_due(paths)
    except KvmpvError as error:
        run.troubles.append(str(error))
        return False


def _compile(paths: list[str]) -> None:
    """Have pytest compile the tests here: in the box that takes seconds a file."""
    command = [PYTHON, "-m", "pytest", "--collect-only", "-q", *paths]
    subprocess.run(
        command, cwd=CHECKOUT, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )


def _seconds(results: Results) -> float:
    return sum(results.by_file().values())


def _box_up(run: Run) -> bool:
    """Start the box; that it does not come up is a failure of the run, not of a test."""
    _title("dev box: up")
    start = time.monotonic()
    status = subprocess.run([DEVBOX, "up"], stdin=subprocess.DEVNULL, check=False).returncode
    run.fixed["box-start"] = time.monotonic() - start
    if status != 0:
        run.troubles.append(f"the dev box did not come up (scripts/devbox up: status {status})")
    return status == 0


def _judge(run: Run, results: Results, status: int) -> None:
    """Tell a run of pytest that broke off, or found nothing, from one that ended."""
    failures = any(one.outcome == "failed" for one in results.verdicts.values())
    if status == 0 or (status == 1 and failures) or (status == NO_TESTS and results.verdicts):
        return
    where = f" in {results.running}" if results.running else ""
    run.troubles.append(f"pytest on the {results.place} ended with status {status}{where}")


def _box_retries() -> int:
    """Count the commands that scripts/devbox ever ran again, in the box of this checkout."""
    path = Place().retries
    return len(path.read_text().splitlines()) if path.exists() else 0


def _pytest(prefix: list[str], args: list[str], results: Results) -> int:
    argv = [*prefix, PYTHON, "-m", "pytest", "-q", "-p", "scripts.tools.suite.stream", *args]
    path = f"{BUILD}/bin:{BUILD}/venv/bin:{os.environ.get('PATH', os.defpath)}"
    environment = os.environ | {"PATH": path}
    splitter = Splitter(results)
    null, pipe = subprocess.DEVNULL, subprocess.PIPE
    with subprocess.Popen(argv, cwd=CHECKOUT, env=environment, stdin=null, stdout=pipe) as child:
        assert child.stdout is not None
        while data := os.read(child.stdout.fileno(), 1 << 16):
            sys.stdout.buffer.write(splitter.feed(data))
            sys.stdout.flush()
    return child.returncode


def paths(folders: tuple[str, ...]) -> list[str]:
    """Name those test folders that exist."""
    return [f"tests/{name}" for name in folders if (CHECKOUT / "tests" / name).is_dir()]


def _title(text: str) -> None:
    print(f"== {text}", flush=True)
