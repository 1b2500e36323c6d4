"""Changes in a folder are seen, in folders made later too."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from kvmpv.devbox.changes import Watch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    (tmp_path / "sub").mkdir()
    found = Watch(tmp_path)
    yield found
    found.close()


def test_nothing_changes_by_itself(watch: Watch) -> None:
    assert not watch.changed()


def test_a_written_file_is_a_change_once(watch: Watch, tmp_path: Path) -> None:
    (tmp_path / "sub" / "file").write_text("x")
    assert watch.changed()
    assert not watch.changed()


def test_a_removed_file_is_a_change(watch: Watch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    watch.changed()
    (tmp_path / "file").unlink()
    assert watch.changed()


def test_a_new_folder_is_watched(watch: Watch, tmp_path: Path) -> None:
    (tmp_path / "new" / "deep").mkdir(parents=True)
    assert watch.changed()
    (tmp_path / "new" / "deep" / "file").write_text("x")
    assert watch.changed()


def test_reading_is_no_change(watch: Watch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    watch.changed()
    (tmp_path / "file").read_text()
    assert not watch.changed()


def test_a_file_that_changes_and_looks_the_same_is_named(watch: Watch, tmp_path: Path) -> None:
    path = tmp_path / "sub" / "file"
    steps = [("one", 5, False), ("two", 5, True), ("four", 5, False), ("six", 5, True)]
    for text, second, alike in [*steps, ("ten", 6, False)]:
        path.write_text(text)
        os.utime(path, (second, second))
        assert watch.changed()
        assert watch.alike == ([str(path)] if alike else [])
