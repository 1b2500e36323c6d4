"""Compile the agent."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from kvmpv.errors import HostError

SOURCES = Path(__file__).parent
FLAGS = [
    "-std=gnu11", "-Os", "-s", "-Wall", "-Wextra", "-Werror=implicit",
    "-fno-asynchronous-unwind-tables", "-Wl,--build-id=none",
]  # fmt: skip
STATIC = ["-static"]


def sources() -> list[Path]:
    """Return the files that the agent is compiled from, headers included."""
    return sorted([*SOURCES.glob("*.c"), *SOURCES.glob("*.h")])


def compiler() -> str:
    """Return the C compiler's path; raises HostError if there is none."""
    found = shutil.which(os.environ.get("CC", "gcc"))
    if not found:
        raise HostError("no C compiler", hint="install the Debian package gcc")
    return found


def compile_agent(into: Path, *more: str) -> None:
    """Compile the agent to the file ``into``, static unless other flags are given.

    Raises HostError with the compiler's first error.
    """
    units = [path.name for path in sources() if path.suffix == ".c"]
    command = [compiler(), *FLAGS, *(more or STATIC), "-o", str(into), *units]
    done = subprocess.run(command, cwd=SOURCES, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or ["no message"]
        raise HostError(f"cannot compile the agent: {errors[0]}", hint="is libc6-dev installed?")
