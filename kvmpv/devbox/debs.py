"""Fetch Debian packages and unpack them privately, leaving the system's own apt and dpkg alone.

The sources are the machine's own: its Debian archive entry is copied into a private apt state
with the suite replaced, so whatever mirror or proxy the machine uses is used here as well.
"""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

from kvmpv.errors import HostError
from kvmpv.images.apt_sources import SOURCES, archive_source

if TYPE_CHECKING:
    from pathlib import Path


def fetch(names: list[str], into: Path, *, suite: str = "", state: Path) -> list[Path]:
    """Download the packages ``names`` into ``into``, from ``suite`` if one is given.

    ``state`` keeps the private apt state between calls. Raises HostError when apt cannot.
    """
    options = private_options(state, suite)
    into.mkdir(parents=True, exist_ok=True)
    _apt(["apt-get", *options, "-q", "update"], into, f"apt cannot read the suite {suite or '-'}")
    wanted = [f"{name}/{suite}" if suite else name for name in names]
    _apt(["apt-get", *options, "-q", "download", *wanted], into, f"apt cannot fetch {names[0]}")
    return sorted(into.glob("*.deb"))


def unpack(package: Path, into: Path) -> None:
    """Unpack one .deb file's content into the directory ``into``."""
    into.mkdir(parents=True, exist_ok=True)
    _apt(["dpkg-deb", "-x", str(package), str(into)], into, f"cannot unpack {package.name}")


def candidate(name: str, *, suite: str = "", state: Path) -> str:
    """Return the version of ``name`` that would be fetched, empty if there is none."""
    options = private_options(state, suite)
    command = ["apt-cache", *options, "madison", name]
    text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    first = text.splitlines()[:1]
    return first[0].split("|")[1].strip() if first else ""


def depends(name: str, prefix: str, *, state: Path, suite: str = "") -> str:
    """Return the first dependency of ``name`` that begins with ``prefix``."""
    command = ["apt-cache", *private_options(state, suite), "depends", name]
    text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    for line in text.splitlines():
        kind, _, word = line.strip().partition("Depends: ")
        if not kind and word.startswith(prefix):
            return word
    raise HostError(f"apt knows no {prefix}* that {name} stands for", hint="run apt-get update")


def private_options(state: Path, suite: str) -> list[str]:
    """Return apt's options for a state of our own; without a suite the system's lists serve."""
    if not suite:
        return []
    parts = state / "sources.d"
    for folder in (parts, state / "lists" / "partial", state / "cache" / "archives" / "partial"):
        folder.mkdir(parents=True, exist_ok=True)
    (parts / "kvmpv.sources").write_text(archive_source(SOURCES, suite))
    return [
        "-o", "Dir::Etc::SourceList=/dev/null",
        "-o", f"Dir::Etc::SourceParts={parts}",
        "-o", f"Dir::State::Lists={state / 'lists'}",
        "-o", f"Dir::Cache={state / 'cache'}",
        "-o", "APT::Sandbox::User=",
    ]  # fmt: skip


def _apt(command: list[str], cwd: Path, failure: str) -> None:
    environment = os.environ | {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = [x for x in (done.stderr + done.stdout).splitlines() if x.startswith("E:")]
        reason = lines[0] if lines else f"{command[0]} ended with {done.returncode}"
        raise HostError(failure, hint=f"{reason}; is the network up? try apt-get update")
