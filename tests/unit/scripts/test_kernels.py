"""A second build and the debug kernel are for inputs that are new."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmpv.images import kernel, keyed
from scripts.tools.suite import kernels

FILES = {"vmlinux": b"v", "bzImage": b"b", "System.map": b"s", "config": b"c"}


@pytest.fixture(autouse=True)
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with both variants, and a command that builds another one of the first."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("pv", "debug", "other"):
        folder = keyed.cache() / "kernel" / f"{name}-1"
        folder.mkdir(parents=True)
        for file, data in FILES.items():
            (folder / file).write_bytes(data)
    monkeypatch.setattr(
        kernel,
        "wanted",
        lambda variant: kernel.Kernel(variant, "1", keyed.cache() / "kernel" / f"{variant}-1"),
    )
    monkeypatch.setattr(kernel, "build", lambda variant: str(kernel.wanted(variant).vmlinux))
    command = tmp_path / "kvmpv-command"
    command.write_text(f"#!/bin/sh\necho {keyed.cache()}/kernel/other-1/vmlinux\n")
    command.chmod(0o755)
    monkeypatch.setattr(kernels, "KVMPV", command)
    return keyed.cache() / "kernel"


def test_second_build_runs_once() -> None:
    assert kernels.second_build()[0] == "passed"
    assert kernels.second_build()[0] == ""


def test_second_build_that_differs_fails_and_is_done_again(
    built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (built / "other-1" / "bzImage").write_bytes(b"B")
    for _ in range(2):
        assert kernels.second_build()[0] == "failed"
    assert "differ in bzImage" in capsys.readouterr().out


def test_debug_kernel_is_due_until_its_test_has_passed(built: Path) -> None:
    assert kernels.debug_is_due(["tests/kvm", "tests/boot"])
    assert (built.parent / "current" / "vmlinux-debug").read_bytes() == b"v"
    kernels.remember_debug()
    assert not kernels.debug_is_due(["tests/kvm", "tests/boot"])
    assert kernels.debug_is_due([kernels.DEBUG_TEST])
    assert kernels.debug_is_due([f"{kernels.DEBUG_TEST}::test_of_it"])


def test_debug_kernel_is_not_due_where_its_test_is_not_among_those_that_run() -> None:
    assert not kernels.debug_is_due(["tests/kvm", "tests/boot/test_life.py"])
