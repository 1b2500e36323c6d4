"""The kernel's cache: built once, never broken, never two at a time."""

from __future__ import annotations

import errno
import fcntl
import io
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from kvmpv.errors import BadInput, HostError
from kvmpv.images import kernel, kernel_make, kernel_source

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the tarball; no tool is asked for its version."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernel_make, "tool_versions", lambda: "gcc 0\nld 0")
    monkeypatch.setattr(kernel_make, "check_packages", lambda: None)
    tarball = tmp_path / "source.tar"
    tarball.write_bytes(b"source")
    return tarball


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the compiler by one that only counts."""
    done: list[str] = []

    def compile_nothing(wanted: kernel.Kernel, _tarball: Path, room: Path, *_: object) -> None:
        done.append(wanted.key)
        (room / "result").mkdir()
        (room / "result" / "vmlinux").write_text("ELF")

    monkeypatch.setattr(kernel, "_compile", compile_nothing)
    return done


def left(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "kvmpv" / "kernel").glob("[!.]*-*"))


def test_second_build_is_the_first(source: Path, compiled: list[str]) -> None:
    first = kernel.build("pv", source=source, say=io.StringIO())
    assert Path(first).read_text() == "ELF"
    assert kernel.build("pv", source=source, say=io.StringIO()) == first
    assert len(compiled) == 1


def test_variants_and_sources_are_apart(source: Path, compiled: list[str]) -> None:
    kernel.build("pv", source=source, say=io.StringIO())
    kernel.build("debug", source=source, say=io.StringIO())
    source.write_bytes(b"other source")
    kernel.build("pv", source=source, say=io.StringIO())
    assert len(set(compiled)) == 3
    assert sorted(found.variant for found in kernel.listing()) == ["debug", "pv", "pv"]


def test_compiler_is_an_input(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = kernel.wanted("pv", source=source)
    monkeypatch.setattr(kernel_make, "tool_versions", lambda: "gcc 1\nld 0")
    assert kernel.wanted("pv", source=source) != before


def test_unknown_variant_is_refused() -> None:
    with pytest.raises(BadInput, match="pv, debug"):
        kernel.wanted("fast")


@pytest.mark.parametrize("end", [KeyboardInterrupt, HostError("no"), OSError(errno.ENOSPC, "full")])
def test_build_that_ends_early_leaves_nothing(
    source: Path, monkeypatch: pytest.MonkeyPatch, end: BaseException
) -> None:
    def fail(_kernel: kernel.Kernel, _tarball: Path, room: Path, *_: object) -> None:
        (room / "half").write_text("")
        raise end

    monkeypatch.setattr(kernel, "_compile", fail)
    with pytest.raises((KeyboardInterrupt, HostError)):
        kernel.build("pv", source=source, say=io.StringIO())
    assert left(source.parent) == []
    assert not list((source.parent / "kvmpv" / "kernel").glob(".*.work"))


def test_remains_of_a_killed_build_are_swept(source: Path, compiled: list[str]) -> None:
    cache = source.parent / "kvmpv" / "kernel"
    dead, alive = cache / ".pv-dead.work", cache / ".pv-alive.work"
    for room in (dead, alive):
        room.mkdir(parents=True)
    with (cache / ".pv-alive.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        kernel.build("pv", source=source, say=io.StringIO())
    assert alive.exists()
    assert not dead.exists()


def test_second_of_two_builds_waits_and_says_so(source: Path, compiled: list[str]) -> None:
    wanted = kernel.wanted("pv", source=source)
    lock = source.parent / "kvmpv" / "kernel" / f".{wanted.folder.name}.lock"
    holder = lock.open("w")
    fcntl.flock(holder, fcntl.LOCK_EX)

    class Listener(io.StringIO):
        def write(self, text: str) -> int:
            # The first build ends now, and has built it.
            wanted.folder.mkdir()
            holder.close()
            return super().write(text)

    out = Listener()
    kernel.build("pv", source=source, say=out)
    assert "waiting" in out.getvalue()
    assert compiled == []


def test_full_disk_is_told_before_the_build(
    source: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(9, 9, 0))
    with pytest.raises(HostError, match="3 GiB"):
        kernel.build("pv", source=source, say=io.StringIO())
    assert compiled == []


def test_inputs_that_change_under_the_build_are_noticed(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edit(_kernel: kernel.Kernel, tarball: Path, room: Path, *_: object) -> None:
        (room / "result").mkdir()
        tarball.write_bytes(b"another source")

    monkeypatch.setattr(kernel, "_compile", edit)
    with pytest.raises(HostError, match="changed while"):
        kernel.build("pv", source=source, say=io.StringIO())
    assert left(source.parent) == []


def test_path_of_what_is_not_built_says_how_to(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_source, "find", lambda: source)
    with pytest.raises(BadInput, match="kvmpv kernel build"):
        kernel.path("pv")


def test_checkout_without_patches_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "PATCHES", tmp_path / "gone")
    with pytest.raises(BadInput, match="checkout"):
        kernel.wanted("pv")
