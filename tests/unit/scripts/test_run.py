from __future__ import annotations

import os
from typing import TYPE_CHECKING

from scripts.tools import run

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_current_images_are_links_that_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("old", "new", "new"):
        run.make_current("vmlinux", tmp_path / name)
    folder = tmp_path / "kvmpv/current"
    assert str((folder / "vmlinux").readlink()) == "../../new"
    assert [path.name for path in folder.iterdir()] == ["vmlinux"]


def test_what_builds_print_stays_off_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    with run.standard_streams_kept():
        os.write(1, b"chatter\n")
        assert os.read(0, 1) == b""
    os.write(1, b"the guest's\n")
    assert capfd.readouterr() == ("the guest's\n", "chatter\n")
