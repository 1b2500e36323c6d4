"""What takes a kernel build of its own: done once for each state of the inputs, and remembered.

Beside a build in the cache lies a file for each thing that was seen to hold of it.
"""

from __future__ import annotations

import filecmp
import os
import subprocess
import tempfile
import time
from pathlib import Path

from kvmpv.images import kernel, keyed
from scripts.tools.place import BUILD, CHECKOUT
from scripts.tools.run import make_current

KVMPV = BUILD / "bin" / "kvmpv"
DEBUG_TEST = "tests/boot/test_debug_kernel.py"
COMPARED = ("vmlinux", "bzImage", "System.map", "config")


def second_build() -> tuple[str, float]:
    """Build the kernel again, elsewhere; return the verdict, empty if it was given before."""
    first = kernel.wanted("pv")
    seen = first.folder / "same-twice"
    if seen.exists():
        return "", 0.0
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="again-", dir=keyed.cache()) as cache:
        environment = os.environ | {"XDG_CACHE_HOME": cache}
        argv = [str(KVMPV), "kernel", "build"]
        done = subprocess.run(
            argv, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False
        )
        if done.returncode:
            return "failed", time.monotonic() - start
        other = Path(os.fsdecode(done.stdout).strip()).parent
        _, differ, missing = filecmp.cmpfiles(first.folder, other, COMPARED, shallow=False)
    for name in differ + missing:
        print(f"two builds of the same inputs differ in {name}")
    if differ or missing:
        return "failed", time.monotonic() - start
    seen.touch()
    return "passed", time.monotonic() - start


def debug_is_due(paths: list[str]) -> bool:
    """Tell whether the debug variant's test is to run among the tests at some paths.

    It is where it is named, and with all others once for each state of kernel and test. If so the
    variant is built.
    """
    files = [path.partition("::")[0] for path in paths]
    among = any(DEBUG_TEST.startswith(path) for path in files)
    if not among or (DEBUG_TEST not in files and _seen_clean().exists()):
        return False
    make_current("vmlinux-debug", Path(kernel.build("debug")))
    return True


def remember_debug() -> None:
    """Remember that the debug variant's test has passed."""
    _seen_clean().touch()


def _seen_clean() -> Path:
    return kernel.wanted("debug").folder / f"clean-{keyed.digest([CHECKOUT / DEBUG_TEST])}"
