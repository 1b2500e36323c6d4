"""The compiled parts: the Cython modules, in place, and the firmware."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from kvmpv.images.keyed import locked
from scripts.tools.debian import SetupError
from scripts.tools.place import BUILD, CHECKOUT, files_digest, log_file, write_whole
from scripts.tools.progress import StepFailed, run_step

if TYPE_CHECKING:
    from pathlib import Path

    from scripts.tools.progress import Meter


def ensure(venv: Path) -> None:
    """Build what has changed since the last build. Raises SetupError."""
    with locked(BUILD / "native.lock"):
        _extensions(venv)
        _firmware()


def _extensions(venv: Path) -> None:
    sources = [path for kind in ("pyx", "pxd", "h") for path in CHECKOUT.glob(f"kvmpv/**/*.{kind}")]
    modules = [path for path in sources if path.suffix == ".pyx"]
    if not modules:
        return
    key = files_digest([*sources, CHECKOUT / "setup.py"], venv.name.encode())
    stamp = BUILD / "extensions.stamp"
    if stamp.exists() and stamp.read_text() == key and all(_built(path) for path in modules):
        return
    seen = 0

    def meter(line: str) -> float | None:
        nonlocal seen
        seen += line.startswith(("building ", "copying "))
        return seen / (2 * len(modules))

    _step(
        f"compiled modules ({len(modules)})",
        "extensions",
        [str(venv / "bin/python"), "setup.py", "build_ext", "--inplace"],
        meter,
    )
    write_whole(stamp, key)


def _built(source: Path) -> bool:
    return any(source.parent.glob(f"{source.stem}.*.so"))


def _firmware() -> None:
    """Ask make, which knows what changed; only a build that is due is shown as a step."""
    if not (CHECKOUT / "firmware" / "Makefile").exists():
        return
    command = ["make", "--no-print-directory", "-C", "firmware"]
    due = subprocess.run([*command, "--question"], cwd=CHECKOUT, capture_output=True, check=False)
    if due.returncode != 0:
        _step("firmware", "firmware", command)


def _step(title: str, log: str, argv: list[str], meter: Meter = lambda _line: None) -> None:
    try:
        run_step(title, log_file(log), argv, meter)
    except StepFailed as failed:
        reason = failed.last_line("error:", "Error", "***")
        raise SetupError(f"{title}: {reason} (log: {failed.log})") from None
