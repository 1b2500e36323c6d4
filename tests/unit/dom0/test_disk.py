"""Images: what can be one, how large its blocks are, and who may have it."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

import pytest

from kvmpv.dom0 import disk as disk_module
from kvmpv.dom0.disk import Image, Overlay
from kvmpv.errors import BadInput

if TYPE_CHECKING:
    from pathlib import Path

SECTOR = 512


def opened(path: Path, *, read_only: bool = False, direct: bool = False) -> Image:
    return Image(str(path), read_only=read_only, direct=direct)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "disk.img"
    made.write_bytes(bytes(8 * SECTOR))
    return made


def test_file_has_blocks_of_512_bytes(path: Path) -> None:
    image = opened(path)
    assert (image.logical, image.memory_align, image.offset_align) == (SECTOR, 1, 1)
    assert image.physical >= SECTOR
    assert image.size() == 8 * SECTOR
    image.close()


def test_growth_is_seen(path: Path) -> None:
    image = opened(path)
    os.truncate(path, 16 * SECTOR)
    assert image.size() == 16 * SECTOR
    image.close()


@pytest.mark.parametrize("size", [0, 1, 511, 513])
def test_size_that_is_no_number_of_sectors_is_refused(path: Path, size: int) -> None:
    os.truncate(path, size)
    image = opened(path)
    with pytest.raises(BadInput):
        image.size()
    image.close()


def test_missing_image_and_folder_are_refused(tmp_path: Path) -> None:
    for name in ("none", "."):
        with pytest.raises(BadInput):
            opened(tmp_path / name)


def test_second_description_gets_no_lock_from_the_living(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = opened(path), opened(path)
    assert first.lock()
    assert first.lock()
    monkeypatch.setattr(disk_module, "_holders", lambda _: [1])
    monkeypatch.setattr(disk_module, "_alive", lambda _: "domain other")
    with pytest.raises(BadInput, match="in use by domain other"):
        second.lock()
    first.close()
    assert second.lock()
    second.close()


def test_lock_of_the_dead_is_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last request holds the description, and so does a duplicate of its descriptor here."""
    first, second = opened(path), opened(path)
    assert first.lock()
    request = os.dup(first.fd)
    first.close()
    monkeypatch.setattr(disk_module, "_alive", lambda _: "")
    assert not second.lock()
    os.close(request)
    assert second.lock()
    second.close()


def test_readers_share_and_keep_a_writer_off(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readers = [opened(path, read_only=True) for _ in range(2)]
    assert all(reader.lock() for reader in readers)
    writer = opened(path)
    monkeypatch.setattr(disk_module, "_alive", lambda _: "")
    assert not writer.lock()
    for reader in readers:
        reader.close()
    assert writer.lock()
    writer.close()


def test_holder_of_a_lock_is_found(path: Path) -> None:
    image = opened(path)
    image.lock()
    assert disk_module._holders(image.fd) == [os.getpid()]
    image.close()
    with open(path, "rb") as file:
        assert disk_module._holders(file.fileno()) == []


def test_nobody_is_alive_under_a_number_that_is_none() -> None:
    assert disk_module._alive((1 << 22) + 1) == ""
    assert disk_module._alive(os.getpid())


def test_overlay_keeps_its_bits_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "overlay"
    first = Overlay(os.open(path, os.O_RDWR | os.O_CREAT), 100 * SECTOR)
    assert first.lock()
    first.bitmap[3] = 0x40
    assert os.fstat(first.fd).st_size > 100 * SECTOR
    first.close()
    second = Overlay(os.open(path, os.O_RDWR), 100 * SECTOR)
    assert second.bitmap[3] == 0x40
    second.close()


def test_overlay_is_locked_by_one(tmp_path: Path) -> None:
    path = tmp_path / "overlay"
    first = Overlay(os.open(path, os.O_RDWR | os.O_CREAT), SECTOR)
    second = Overlay(os.open(path, os.O_RDWR), SECTOR)
    assert first.lock()
    assert not second.lock()
    first.close()
    assert second.lock()
    second.close()


def test_lock_is_on_what_the_writes_go_through(tmp_path: Path) -> None:
    """The descriptor that was handed over stays another one's: its lock would not end with us."""
    handed = os.open(tmp_path / "overlay", os.O_RDWR | os.O_CREAT)
    mine = os.dup(handed)
    overlay = Overlay(mine, SECTOR)
    assert overlay.lock()
    with pytest.raises(BlockingIOError):
        fcntl.flock(handed, fcntl.LOCK_EX | fcntl.LOCK_NB)
    overlay.close()
    fcntl.flock(handed, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(handed)
