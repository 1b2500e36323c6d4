"""scripts/setup does what is not done, and says in one line what it cannot do."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

NO_NETWORK = """
echo "Err:1 the-mirror bookworm/main amd64 bc" >&2
echo "  Temporary failure resolving 'the-mirror'" >&2
echo "E: Failed to fetch the-mirror/bc.deb  Temporary failure resolving 'the-mirror'" >&2
exit 100
"""
UNKNOWN = """
echo "E: Unable to locate package bc" >&2
[ "${*#*update}" != "$*" ] || exit 100
"""


def run_setup(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "scripts/setup"],
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def lacking_bc(tmp_path: Path):
    """Stand in for a machine without the package bc; apt-get does what it is told to."""

    def go(apt: str) -> subprocess.CompletedProcess[str]:
        have = [line.split()[0] for line in (ROOT / "requirements.apt").read_text().splitlines()
                if line and not line.startswith("#") and line != "bc"]  # fmt: skip
        answer = "\n".join(f"echo installed {name}" for name in have)
        for name, body in {"dpkg-query": answer, "apt-get": apt, "sudo": 'exec "$@"'}.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
            (tmp_path / name).chmod(0o755)
        path = f"{tmp_path}:{os.environ['PATH']}"
        return run_setup(PATH=path, XDG_CACHE_HOME=str(tmp_path / "cache"))

    return go


def test_second_run_has_nothing_to_do_and_says_nothing() -> None:
    assert run_setup().returncode == 0
    again = run_setup()
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("apt", "reason"),
    [(NO_NETWORK, "Temporary failure resolving"), (UNKNOWN, "Unable to locate package bc")],
)
def test_package_that_cannot_be_had_is_named_in_one_line(lacking_bc, apt, reason) -> None:
    done = lacking_bc(apt)
    assert done.returncode == 2
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("scripts/setup: missing Debian package: bc; ")
    assert reason in last
    assert "Traceback" not in done.stderr
