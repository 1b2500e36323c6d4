"""Which files and folders of the host a command in the box gets, and where."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from kvmpv.devbox.through import SCRIPT, SHELL, through
from kvmpv.errors import BadInput

if TYPE_CHECKING:
    from pathlib import Path


def words(*paths: Path | str) -> list[str]:
    with through([str(path) for path in paths], ["cmd", "arg"]) as found:
        assert found[:3] == [SHELL, "sh", str(SCRIPT)]
        assert found[3] == os.getcwd()
        assert found[-3:] == ["--", "cmd", "arg"]
        return found[4:-3]


def test_files_and_folders_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    file, folder = str(tmp_path / "file"), str(tmp_path / "folder")
    assert words(file, folder) == ["f", file, file, "d", folder, folder]


def test_relative_paths_are_of_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    assert words("./file") == ["f", str(tmp_path / "file"), str(tmp_path / "file")]


def test_link_leads_to_its_target(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    assert words(tmp_path / "link") == ["f", str(tmp_path / "file"), str(tmp_path / "link")]


def test_what_a_named_folder_has_in_it_is_not_mounted_twice(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert words(tmp_path, tmp_path / "file", tmp_path) == ["d", str(tmp_path), str(tmp_path)]


def test_missing_file_is_made_and_removed_if_it_stays_empty(tmp_path: Path) -> None:
    empty, full = tmp_path / "empty", tmp_path / "full"
    with through([str(empty), str(full)], ["cmd"]):
        assert empty.exists()
        full.write_text("log")
    assert not empty.exists()
    assert full.read_text() == "log"


def test_existing_empty_file_stays(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words(tmp_path / "file")
    assert (tmp_path / "file").exists()


def test_the_boxs_own_devices_are_left_to_it() -> None:
    assert words("/dev/null", "/proc/self/fd/0") == []


def test_what_a_box_cannot_have_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.bind(str(tmp_path / "sock"))
        with pytest.raises(BadInput, match="is a device or a socket of this host"):
            words(tmp_path / "sock")
    with pytest.raises(BadInput, match="cannot have the whole host"):
        words("/")
    with pytest.raises(BadInput, match=r"cannot make .*gone/file: No such file"):
        words(tmp_path / "gone/file")
