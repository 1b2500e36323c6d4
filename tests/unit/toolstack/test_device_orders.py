"""What a worker and a VMM are told of a device is what they understand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpv.dom0 import orders as dom0_orders
from kvmpv.errors import BadInput
from kvmpv.toolstack import backend, devices, disks, processes, specs, worker
from kvmpv.toolstack.backend import Slot
from kvmpv.toolstack.vmm import Descriptors
from kvmpv.vmm import orders as vmm_orders


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a,b %.img"
    path.touch()
    os.truncate(path, 4096)
    return path


def test_worker_is_told_of_a_disk_as_it_takes_it(image: Path) -> None:
    text = str(image).replace(",", ",,")
    device = devices.disk(f"{text},readonly,serial=x,iops=5,discard=off,cache=unsafe")
    slot = Slot(7, device, 2)
    slot.image = disks.open_image(device, [])
    found = dom0_orders.device(f"7,blk,9{worker.worker_words(slot)}")
    slot.release()
    assert (found.number, found.kind, found.fd) == (7, "blk", 9)
    assert found.options == {
        "path": str(image),
        "readonly": "1",
        "serial": "x",
        "cache": "unsafe",
        "discard": "off",
        "iops": "5",
        "queues": "2",
    }


@pytest.mark.parametrize(
    ("made", "options"),
    [
        (devices.disk("null:1M,queues=3"), {"null": str(1 << 20), "queues": "3"}),
        (devices.rng("rate=1K", True), {"rate": "1024"}),
        (devices.vsock("/a b,cid=5"), {"cid": "5", "path": "/a b"}),
    ],
)
def test_worker_is_told_of_other_devices(made: devices.Device, options: dict[str, str]) -> None:
    assert dom0_orders.device(f"0,x,9{worker.worker_words(Slot(0, made, 1))}").options == options


@pytest.mark.parametrize(
    ("made", "kind", "options"),
    [
        (devices.disk("null:1M,loss=crash"), "blk", {"loss": "crash", "queues": "3"}),
        (devices.disk("vhost-user=s"), "blk", {"loss": "reset", "queues": "1"}),
        (devices.share("/src"), "fs", {"loss": "reset", "queues": "1", "tag": "src"}),
        (devices.root("/srv"), "fs", {"loss": "reset", "queues": "1", "tag": "root"}),
        (devices.net("nat,mac=52:54:00:00:00:01,mtu=9000,queues=2"), "net",
         {"loss": "reset", "queues": "2", "mac": "52:54:00:00:00:01", "mtu": "9000"}),
        (devices.rng("on", True), "rng", {}),
    ],
)  # fmt: skip
def test_vmm_is_told_of_a_device_as_it_takes_it(
    made: devices.Device, kind: str, options: dict[str, str]
) -> None:
    descriptors = Descriptors()
    descriptors.give_device(4, Slot(4, made, 3).order, 77)
    [found] = vmm_orders.parse(descriptors.words).devices
    assert (found.number, found.kind, found.fd, found.options) == (4, kind, 77, options)


@given(st.text().filter(lambda text: "\0" not in text))
def test_any_value_survives_its_orders(text: str) -> None:
    assert dom0_orders.unescape(specs.escape(text)) == text
    assert not set(specs.escape(text)) & set(", \t\r\n")


@pytest.mark.parametrize(
    ("name", "head", "format_", "found"),
    [
        ("a.img", b"", "auto", "raw"),
        ("a.qcow2", b"QFI\xfb\0\0\0\3", "auto", "qcow2"),
        ("a.QCOW2", b"QFI\xfb\0\0\0\3", "auto", "qcow2"),
        ("a.qcow", b"QFI\xfb\0\0\0\1", "auto", "qcow"),
        ("a.vdi", bytes(0x40) + b"\x7f\x10\xda\xbe", "auto", "vdi"),
        ("a.vhdx", b"vhdxfile", "auto", "vhdx"),
        ("a.img", b"QFI\xfb\0\0\0\3", "raw", "raw"),
        ("a.img", b"QFI\xfb\0\0\0\3", "qcow2", "qcow2"),
        ("a.img", b"QFI\xfb\0\0\0\3", "auto", ""),
        ("a.qcow2", b"", "auto", ""),
    ],
)
def test_format_is_what_content_and_name_say(
    name: str, head: bytes, format_: str, found: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(head.ljust(4096, b"\0"))
    device = devices.disk({"path": str(path), "format": format_})
    if not found:
        with pytest.raises(BadInput, match="its content looks like"):
            disks.open_image(device, [])
        return
    image = disks.open_image(device, [])
    assert image.format == found
    image.close()


def test_image_is_locked_until_it_is_closed(image: Path) -> None:
    path = str(image).replace(",", ",,")
    first = disks.open_image(devices.disk(path), [])
    with pytest.raises(BadInput, match="is another domain's disk"):
        disks.open_image(devices.disk(path), [])
    first.close()
    readers = [disks.open_image(devices.disk(f"{path},readonly"), []) for _ in range(2)]
    for reader in readers:
        reader.close()
    disks.open_image(devices.disk(path), []).close()


def test_image_grows_and_never_shrinks(image: Path) -> None:
    device = devices.disk(str(image).replace(",", ",,"))
    opened = disks.open_image(device, [])
    opened.grow(device, 8192)
    assert image.stat().st_size == opened.size == 8192
    for size in (4096, 8193):
        with pytest.raises(BadInput):
            opened.grow(device, size)
    opened.close()


def test_death_after_a_long_life_is_the_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("kvmpv.toolstack.backend.time.monotonic", lambda: now)
    one = backend.Backend(backend.Place("x", "/", 2), [])
    delays = []
    for life in (0.0, 0.1, 0.1, 0.1, 1.0, 1.0, 1.0, 1.0, 60.0, 0.1):
        now += life
        one.note_death()
        delays.append(round(one.restart_delay, 3))
        one._started_at = now
    one.place.close()
    assert delays == [0, 0.1, 0.2, 0.5, 1, 2, 5, 5, 0, 0.1]


def test_last_line_of_a_log_is_why(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("before\n")
    with open(path, "r+b") as log:
        start = os.fstat(log.fileno()).st_size
        assert processes.last_line(log.fileno(), start) == ""
        path.write_text("before\none\ntwo\n\n")
        assert processes.last_line(log.fileno(), start) == "two"
        path.write_text("")  # somebody has cut it
        assert processes.last_line(log.fileno(), start) == ""
