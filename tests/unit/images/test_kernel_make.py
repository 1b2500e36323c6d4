"""What a build says when it cannot."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest

from kvmpv.errors import HostError
from kvmpv.images import kernel_make


class Job(kernel_make.Job):
    """A job whose every command fails with some output."""

    def __init__(self, folder: Path, output: str) -> None:
        self._file = (folder / "log").open("w")
        super().__init__(self._file, folder / "log", io.StringIO())
        self._output = output

    def run(self, command: list[str], tree: Path, *, count: bool = False) -> int:
        self._file.write(self._output)
        self._file.close()
        self._sink = io.StringIO()
        return 2


def test_missing_packages_are_named_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: tool not in ("flex", "xz"))
    monkeypatch.setattr(kernel_make, "INCLUDE", tmp_path)
    with pytest.raises(HostError, match="apt-get install flex libc6-dev libelf-dev xz-utils"):
        kernel_make.check_packages()


def test_failed_build_tells_its_first_error(tmp_path: Path) -> None:
    job = Job(tmp_path, "  CC a.o\na.c:3: error: no such thing\nmake: *** [a.o] Error 1\n")
    with pytest.raises(HostError, match="no such thing") as caught:
        kernel_make.make(tmp_path, job, "vmlinux")
    assert str(tmp_path / "log") in caught.value.hint


def test_disk_that_becomes_full_is_told(tmp_path: Path) -> None:
    job = Job(tmp_path, "as: a.o: No space left on device\nmake: *** [a.o] Error 1\n")
    with pytest.raises(HostError, match="disk became full"):
        kernel_make.make(tmp_path, job, "vmlinux")
