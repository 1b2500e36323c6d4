"""The Debian packages of requirements.apt: which are missing, and their installation."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

from scripts.tools.place import CHECKOUT, log_file
from scripts.tools.progress import StepFailed, run_step

if TYPE_CHECKING:
    from pathlib import Path

LIST = CHECKOUT / "requirements.apt"
# What apt says when it cannot reach its mirrors, or knows no such package yet.
NO_NETWORK = ("resolv", "Could not connect", "Cannot initiate", "unreachable", "Failed to fetch")
# Wait for another apt to finish, but not for a mirror that does not answer.
PATIENCE = ("--option", "DPkg::Lock::Timeout=300", "--option", "Acquire::Retries=1")
STALE = ("Unable to locate package", "has no installation candidate", "404")


class SetupError(Exception):
    """Say in one line what set-up lacks and how to mend it."""


def wanted() -> list[str]:
    """Read the names of the packages."""
    lines = (line.partition("#")[0].strip() for line in LIST.read_text().splitlines())
    return [line for line in lines if line]


def missing(names: list[str]) -> list[str]:
    """Tell which packages are not installed."""
    query = ["dpkg-query", "--show", "--showformat", "${db:Status-Status} ${Package}\\n", *names]
    answer = subprocess.run(query, capture_output=True, text=True, check=False).stdout
    have = {line.split()[1] for line in answer.splitlines() if line.startswith("installed ")}
    return [name for name in names if name not in have]


def install() -> None:
    """Install what is missing. Raises SetupError with the names of the packages."""
    if shutil.which("dpkg-query") is None:
        return  # not Debian: whoever runs this provides the same things another way
    names = missing(wanted())
    if not names:
        return
    root = _as_root(names)
    try:
        try:
            _get(root, names)
        except StepFailed as failed:
            if not (_says(failed.log, *STALE, *NO_NETWORK) and _update(root)):
                raise
            _get(root, names)
    except StepFailed as failed:
        raise SetupError(_explain(names, failed)) from None


def _as_root(names: list[str]) -> list[str]:
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo"):
        return ["sudo"]
    raise SetupError(
        f"missing Debian packages: {' '.join(names)}; neither root nor sudo is at hand: "
        "install them, then run this again"
    )


def _update(root: list[str]) -> bool:
    """Fetch the lists of packages; apt-get calls it a success when no mirror could be reached."""
    log = log_file("apt-update")
    run_step("Debian package lists", log, [*root, "apt-get", *PATIENCE, "update"])
    return not _says(log, *NO_NETWORK)


def _get(root: list[str], names: list[str]) -> None:
    options = [*PATIENCE, "--yes", "--no-install-recommends", "--option", "APT::Status-Fd=1"]
    environment = ["env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8"]
    run_step(
        f"Debian packages ({len(names)} missing)",
        log_file("apt-install"),
        [*root, *environment, "apt-get", "install", *options, *names],
        _percent,
    )


def _percent(line: str) -> float | None:
    """Read apt's status line: dlstatus:N:percent:text, the first half, then pmstatus likewise."""
    kind, _, rest = line.partition(":")
    if kind not in ("dlstatus", "pmstatus"):
        return None
    try:
        part = float(rest.split(":")[1]) / 200
    except (IndexError, ValueError):
        return None
    return part if kind == "dlstatus" else part + 0.5


def _says(log: Path, *words: str) -> bool:
    text = log.read_text(errors="replace")
    return any(word in text for word in words)


def _explain(names: list[str], failed: StepFailed) -> str:
    reason = failed.last_line(*NO_NETWORK, *STALE, "E:").removeprefix("E: ")
    what = "package" if len(names) == 1 else "packages"
    return (
        f"missing Debian {what}: {' '.join(names)}; apt-get could not install: {reason}; "
        f"mend that and run this again (log: {failed.log})"
    )
