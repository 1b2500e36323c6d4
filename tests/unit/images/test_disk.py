"""Images are made whole or not at all, and nothing of what is in them gets lost unasked."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from kvmpv.errors import BadInput, HostError
from kvmpv.images import disk, disk_use

MIB = 1 << 20


def test_created_image_is_sparse(tmp_path: Path) -> None:
    disk.create(tmp_path / "d.img", 64 * MIB)
    state = (tmp_path / "d.img").stat()
    assert (state.st_size, state.st_blocks) == (64 * MIB, 0)


def test_preallocated_image_takes_its_room(tmp_path: Path) -> None:
    disk.create(tmp_path / "d.img", MIB, preallocate=True)
    assert (tmp_path / "d.img").stat().st_blocks * 512 >= MIB


@pytest.mark.parametrize(
    ("size", "what"),
    [
        (0, "0 bytes are no size for a disk"),
        (-512, "-512 bytes are no size for a disk"),
        (1 << 70, f"{1 << 70} bytes are no size for a disk"),
        (1000, "1000 bytes are no multiple of 512 (1024 are)"),
    ],
)
def test_odd_sizes_are_refused(tmp_path: Path, size: int, what: str) -> None:
    with pytest.raises(BadInput) as caught:
        disk.create(tmp_path / "d.img", size)
    assert str(caught.value).startswith(what)
    assert not os.listdir(tmp_path)


def test_existing_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "d.img").write_text("mine")
    with pytest.raises(BadInput, match="exists already"):
        disk.create(tmp_path / "d.img", MIB)
    assert (tmp_path / "d.img").read_text() == "mine"


def test_dangling_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "d.img").symlink_to("elsewhere")
    with pytest.raises(BadInput, match="exists already"):
        disk.create(tmp_path / "d.img", MIB)
    assert os.listdir(tmp_path) == ["d.img"]


@pytest.mark.parametrize(
    ("name", "what"),
    [("", "is a folder"), ("missing/d.img", "there is no folder")],
)
def test_places_that_cannot_be_are_refused(tmp_path: Path, name: str, what: str) -> None:
    with pytest.raises(BadInput, match=what):
        disk.create(tmp_path / name, MIB)


def test_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot make images of format 'vdi'"):
        disk.create(tmp_path / "d.img", MIB, format="vdi")


def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(HostError, match="No space left on device"):
        disk.create(tmp_path / "d.img", MIB, preallocate=True)
    assert not os.listdir(tmp_path)


def test_more_than_there_is_room_for_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="No space left on device"):
        disk.create(tmp_path / "d.img", 1 << 60, preallocate=True)
    assert not os.listdir(tmp_path)


def test_size_beyond_the_file_system_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="has no files as large"):
        disk.create(tmp_path / "d.img", 1 << 62)
    assert not os.listdir(tmp_path)


def test_file_system_without_unnamed_files_serves_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refusing(path: object, flags: int, *more: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "no")
        return real(path, flags, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refusing)
    disk.create(tmp_path / "d.img", MIB)
    assert os.listdir(tmp_path) == ["d.img"]
    with pytest.raises(HostError):
        disk.create(tmp_path / "e.img", 1 << 60, preallocate=True)
    assert os.listdir(tmp_path) == ["d.img"]


def test_grown_image_keeps_its_content(tmp_path: Path) -> None:
    image = tmp_path / "d.img"
    image.write_bytes(b"x" * 4096)
    assert disk.resize(image, MIB) == []
    assert image.stat().st_size == MIB
    assert image.read_bytes()[:4097] == b"x" * 4096 + b"\0"


def test_shrinking_is_only_done_when_asked_for(tmp_path: Path) -> None:
    image = tmp_path / "d.img"
    disk.create(image, 2 * MIB)
    with pytest.raises(BadInput, match="--shrink cuts off"):
        disk.resize(image, MIB)
    assert image.stat().st_size == 2 * MIB
    disk.resize(image, MIB, shrink=True)
    assert image.stat().st_size == MIB


def test_image_in_use_grows_but_does_not_shrink(tmp_path: Path) -> None:
    image = tmp_path / "d.img"
    disk.create(image, MIB)
    with image.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert disk.resize(image, 2 * MIB)
        with pytest.raises(BadInput, match="is in use: process"):
            disk.resize(image, MIB, shrink=True)
    assert image.stat().st_size == 2 * MIB


def test_foreign_format_is_not_resized(tmp_path: Path) -> None:
    (tmp_path / "d.vmdk").write_bytes(b"KDMV" + bytes(508))
    with pytest.raises(BadInput, match="is vmdk"):
        disk.resize(tmp_path / "d.vmdk", MIB)


def test_qcow2_tells_its_own_size_and_backing_file(tmp_path: Path) -> None:
    header = bytearray(512)
    header[0:8] = b"QFI\xfb\0\0\0\3"
    header[8:20] = (100).to_bytes(8, "big") + (4).to_bytes(4, "big")
    header[24:32] = (5 << 30).to_bytes(8, "big")
    header[100:104] = b"base"
    (tmp_path / "d.qcow2").write_bytes(header)
    found = disk_use.inspect(tmp_path / "d.qcow2")
    assert (found.format, found.size, found.backing) == ("qcow2", 5 << 30, "base")


@pytest.mark.parametrize("offset", [1 << 62, (1 << 63) + 5])
def test_qcow2_whose_backing_file_cannot_be_has_none(tmp_path: Path, offset: int) -> None:
    header = b"QFI\xfb\0\0\0\3" + offset.to_bytes(8, "big") + (4).to_bytes(4, "big")
    (tmp_path / "d.qcow2").write_bytes(header + bytes(492))
    assert disk_use.inspect(tmp_path / "d.qcow2").backing == ""


@pytest.mark.parametrize(("name", "what"), [("gone", "cannot read"), ("", "is a folder")])
def test_what_is_no_image_is_refused(tmp_path: Path, name: str, what: str) -> None:
    with pytest.raises(BadInput, match=what):
        disk_use.inspect(tmp_path / name)


def test_what_is_no_image_is_not_even_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "open")
    with pytest.raises(BadInput, match="/dev/null is no file"):
        disk_use.inspect(Path("/dev/null"))


def test_copy_keeps_holes_and_content(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    with source.open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(32 * MIB)
        file.write(b"data" * 1024)
    with disk.unnamed(target) as fd:
        disk.copy(source, fd, size=80 * MIB)
    state = target.stat()
    assert state.st_size == 80 * MIB
    assert state.st_blocks * 512 < MIB
    with target.open("rb") as file:
        file.seek(32 * MIB)
        assert file.read(4097) == b"data" * 1024 + b"\0"
