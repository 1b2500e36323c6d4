"""``kvmpv kernel``: what it says of the kernels that are built here."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

KVMPV = str(Path(__file__).parents[3] / "build/bin/kvmpv")


def kvmpv(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [KVMPV, "kernel", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == status, done.stderr
    return done


def test_kernel_that_build_would_give_is_listed_as_current() -> None:
    path = Path(kvmpv("path").stdout.strip())
    rows = json.loads(kvmpv("list", "--json").stdout)
    [current] = [row for row in rows if row["current"] and row["variant"] == "pv"]
    assert Path(current["path"]) == path.parent
    assert f"* pv     {current['key']}" in kvmpv("list").stdout


def test_paths_are_those_of_files() -> None:
    paths = json.loads(kvmpv("path", "--json").stdout)
    assert paths.keys() == {"vmlinux", "bzImage", "config", "System.map"}
    assert all(Path(path).is_file() for path in paths.values())


def test_configuration_is_that_of_a_guest_of_ours() -> None:
    lines = kvmpv("config").stdout.splitlines()
    assert {"CONFIG_KVM_GUEST=y", "CONFIG_SMP=y"} <= set(lines)


def test_unknown_variant_costs_a_line() -> None:
    done = kvmpv("path", "--variant", "fast", status=2)
    assert done.stderr.count("\n") == 1
    assert "pv" in done.stderr
