"""The host's disks, as /sys and /proc of a test's making tell of them."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path

import pytest

from kvmpv.errors import BadInput
from kvmpv.hostdev import disks

DISK = os.makedev(8, 0)
PARTITION = os.makedev(8, 1)


@pytest.fixture(autouse=True)
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a host with a disk and a partition of it, unused."""
    for number in ("8:0", "8:0/sda1", "8:1"):
        (tmp_path / "dev" / number / "holders").mkdir(parents=True)
    (tmp_path / "dev/8:0/sda1/dev").write_text("8:1\n")
    (tmp_path / "dev/8:0/sda1/partition").write_text("1\n")
    (tmp_path / "mountinfo").write_text("22 1 253:0 / / rw - ext4 /dev/dm-0 rw\n")
    (tmp_path / "by-id").mkdir()
    monkeypatch.setattr(disks, "SYS_BLOCK", str(tmp_path / "dev"))
    monkeypatch.setattr(disks, "SYS_LOOPS", str(tmp_path / "block"))
    monkeypatch.setattr(disks, "MOUNTS", str(tmp_path / "mountinfo"))
    monkeypatch.setattr(disks, "BY_ID", str(tmp_path / "by-id"))
    return tmp_path


@pytest.fixture
def device(host: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    path = host / "sda"
    path.touch()
    monkeypatch.setattr(
        "kvmpv.hostdev.disks.os.stat", lambda _: types.SimpleNamespace(st_rdev=DISK)
    )
    return str(path)


def test_disk_that_nobody_uses_is_free(device: str) -> None:
    assert disks.use_of_device(device) == ""


@pytest.mark.parametrize("number", ["8:0", "8:1"])
def test_mounted_disk_or_partition_is_in_use(number: str, device: str, host: Path) -> None:
    line = f"30 22 {number} / /srv/data rw - ext4 /dev/sda rw\n"
    (host / "mountinfo").write_text(line)
    assert disks.use_of_device(device) == "mounted on /srv/data"


@pytest.mark.parametrize("number", ["8:0", "8:1"])
def test_disk_that_another_device_holds_is_in_use(number: str, device: str, host: Path) -> None:
    (host / "dev" / number / "holders" / "md0").touch()
    assert disks.use_of_device(device) == "held by md0"


def test_file_behind_a_loop_device_is_in_use(host: Path) -> None:
    image = host / "disk.img"
    image.touch()
    (host / "link").symlink_to(image)
    assert disks.use_of_file(str(image)) == ""
    loop = host / "block/loop7"
    (loop / "loop").mkdir(parents=True)
    (loop / "loop/backing_file").write_text(f"{image}\n")
    (loop / "dev").write_text("7:7\n")
    assert disks.use_of_file(str(host / "link")) == "the loop device /dev/loop7"
    (host / "mountinfo").write_text("30 22 7:7 / /mnt rw - ext4 /dev/loop7 rw\n")
    assert disks.use_of_file(str(image)) == "the loop device /dev/loop7, mounted on /mnt"
    assert disks.use_of_file(str(host / "other.img")) == ""
    os.link(image, host / "other.img")
    assert disks.use_of_file(str(host / "other.img")).startswith("the loop device /dev/loop7")


def test_disk_is_found_by_its_link(host: Path) -> None:
    (host / "sdb").touch()
    (host / "by-id" / "ata-X_1").symlink_to(host / "sdb")
    assert disks.by_id("ata-X_1") == str(host / "sdb")


def known(monkeypatch: pytest.MonkeyPatch, **serials: str) -> None:
    """Have pyudev know disks of these names and serial numbers."""
    found = [
        types.SimpleNamespace(
            device_node=f"/dev/{name}",
            properties={"ID_SERIAL_SHORT": serial},
            device_links=[f"{disks.BY_ID}/usb-{serial}"],
        )
        for name, serial in serials.items()
    ]
    context = types.SimpleNamespace(list_devices=lambda **_: found)
    monkeypatch.setitem(sys.modules, "pyudev", types.SimpleNamespace(Context=lambda: context))


def test_disk_is_found_by_its_serial_number(monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, sda="A1", sdb="B2")
    assert disks.by_id("B2") == "/dev/sdb"
    assert disks.by_id("usb-A1") == "/dev/sda"


@pytest.mark.parametrize("name", ["C3", "../../etc/passwd", ""])
def test_unknown_id_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, sda="A1")
    with pytest.raises(BadInput, match="no disk has the id"):
        disks.by_id(name)


def test_id_of_several_disks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, sda="A1", sdb="A1")
    with pytest.raises(BadInput, match="several disks have the id 'A1': /dev/sda, /dev/sdb"):
        disks.by_id("A1")
