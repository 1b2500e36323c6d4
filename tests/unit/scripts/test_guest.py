"""What scripts/run adds to its options, and which files it takes to be the user's own."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from kvmpv.errors import BadInput
from scripts.tools import guest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "kvmpv/scratch"


def test_guest_gets_a_sparse_disk_and_a_network(cache: Path) -> None:
    disk = cache / "disk1.img"
    assert guest.Asked(["--exec", "true"]).defaults(here=False) == (
        ["--disk", str(disk), "--net", "nat"]
    )
    assert disk.stat().st_size == guest.SCRATCH_SIZE
    assert disk.stat().st_blocks == 0


def test_next_guest_at_the_same_time_gets_a_disk_of_its_own(cache: Path) -> None:
    cache.mkdir(parents=True)
    with (cache / "disk1.img").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert guest.scratch(keep=False) == cache / "disk2.img"
    assert guest.scratch(keep=False) == cache / "disk1.img"


@pytest.mark.parametrize(
    ("given", "more"),
    [
        (["--disk", "null:1M"], ["--net", "nat"]),
        (["--root", "."], ["--net", "nat"]),
        (["--disk", "null:1M", "--net", "none"], []),
        (["--kernel", "x"], []),
        (["--no-such-option"], []),
    ],
)
def test_what_is_given_replaces_the_default(given: list[str], more: list[str]) -> None:
    assert guest.Asked(given).defaults(here=False) == more


def test_ordinary_user_gets_no_network_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert guest.Asked(["--disk", "null:1M"]).defaults(here=True) == []


def test_all_that_the_options_name_is_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("kernel", "d.img", "in-file.img"):
        Path(name).write_bytes(bytes(512))
    Path("c.toml").write_text('disks = ["in-file.img,readonly"]\n')
    Path("folder").mkdir()
    asked = guest.Asked(
        ["--config", "c.toml", "--kernel", "kernel", "--share", "folder,tag=t", "--trace", "new"]
    )
    assert asked.own_files() == ["c.toml", "kernel", "in-file.img", "folder", "new"]
    named = guest.Asked(["--disk", "d.img", "--disk", "gone.img", "--console", "terminal"])
    assert named.own_files() == ["d.img"]


def test_image_is_locked_here_while_its_guest_runs_there(tmp_path: Path) -> None:
    image = tmp_path / "d.img"
    image.write_bytes(bytes(512))
    with image.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BadInput, match="is in use: process"):
            guest.Asked(["--disk", str(image)]).own_files()
        assert guest.Asked(["--disk", f"{image},readonly"]).own_files() == [str(image)]
    guest.Asked(["--disk", str(image)]).own_files()
    with image.open("r+b") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_images_below_an_image_come_along(tmp_path: Path) -> None:
    header = bytearray(512)
    header[0:8] = b"QFI\xfb\0\0\0\3"
    header[8:20] = (100).to_bytes(8, "big") + (8).to_bytes(4, "big")
    header[100:108] = b"base.img"
    (tmp_path / "top.qcow2").write_bytes(header)
    (tmp_path / "base.img").write_bytes(bytes(512))
    top = str(tmp_path / "top.qcow2")
    assert list(guest.backing_files(top)) == [str(tmp_path / "base.img")]
