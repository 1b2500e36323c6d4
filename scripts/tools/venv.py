"""The virtual environment of requirements.lock, shared by all checkouts with the same lock."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from kvmpv.images.keyed import digest, locked
from scripts.tools.debian import SetupError
from scripts.tools.place import BUILD, CHECKOUT, cache, log_file, write_whole
from scripts.tools.progress import StepFailed, run_step

LOCK = CHECKOUT / "requirements.lock"
# Debian's own interpreter, whatever stands first in PATH: it is what the dev box has too.
INTERPRETER = Path("/usr/bin/python3")
READY = "complete"
PIP = ("install", "--require-hashes", "--no-deps", "--only-binary=:all:", "--retries=2")
NO_FILE = ("No matching distribution", "Could not find a version", "do not match the hashes")

LAUNCHER = """\
#!{python} -IS
# Made by scripts/setup. -I and -S keep the user's environment and site's start-up files out, which
# is also most of the time that Python takes to start: the two paths are added by hand.
try:
    import sys

    sys.path += [{checkout!r}, {packages!r}]

    from kvmpv.cli.main import main

    status = main()
except KeyboardInterrupt:  # before the command could say what Ctrl-C means to it
    status = 130
raise SystemExit(status)
"""


def ensure() -> Path:
    """Make the environment where it is missing, and point build/venv at it. Raises SetupError."""
    interpreter = INTERPRETER.resolve()
    about = subprocess.run(
        [interpreter, "-IS", "-c", "import sys; print(sys.version, sys.abiflags)"],
        capture_output=True,
        check=True,
    ).stdout
    key = digest([LOCK.read_bytes(), os.fsencode(interpreter), about])
    home = cache() / f"venv-{key}"
    if not (home / READY).exists():
        with locked(home.with_suffix(".lock")):
            if not (home / READY).exists():
                _make(home, interpreter)
    _link(home)
    _launcher(home, interpreter)
    return home


def _make(home: Path, interpreter: Path) -> None:
    """Install in place, for scripts carry their path; the READY file, written last, vouches."""
    shutil.rmtree(home, ignore_errors=True)
    pins = sum("==" in line for line in LOCK.read_text().splitlines())
    seen = 0

    def meter(line: str) -> float | None:
        nonlocal seen
        seen += line.startswith("Collecting ")
        return 0.95 * seen / pins

    try:
        run_step(
            "virtual environment",
            log_file("venv"),
            [str(interpreter), "-I", "-m", "venv", str(home)],
        )
        run_step(
            f"Python packages ({pins})",
            log_file("pip"),
            [str(home / "bin/python"), "-m", "pip", *PIP, "--requirement", str(LOCK)],
            meter,
        )
    except StepFailed as failed:
        shutil.rmtree(home, ignore_errors=True)
        reason = failed.last_line(*NO_FILE).removeprefix("ERROR: ")
        raise SetupError(
            f"{failed.title}: {reason}; is there a network? (log: {failed.log})"
        ) from None
    (home / READY).touch()


def _link(home: Path) -> None:
    BUILD.mkdir(exist_ok=True)
    link = BUILD / "venv"
    if link.is_symlink() and link.readlink() == home:
        return
    temporary = BUILD / f".venv.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(home)
    temporary.replace(link)


def _launcher(home: Path, interpreter: Path) -> None:
    """Write build/bin/kvmpv, which runs this checkout's package."""
    packages = next(home.glob("lib/python3*/site-packages"))
    text = LAUNCHER.format(python=interpreter, checkout=str(CHECKOUT), packages=str(packages))
    path = BUILD / "bin" / "kvmpv"
    if not path.exists() or path.read_text() != text:
        write_whole(path, text, 0o755)
