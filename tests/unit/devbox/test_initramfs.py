"""What the box's initramfs is made of."""

from __future__ import annotations

import lzma
import struct

import pytest

from kvmpv.devbox import debian, initramfs
from kvmpv.errors import HostError

DEPENDENCIES = """\
kernel/fs/9p/9p.ko: kernel/net/9p/9pnet.ko kernel/fs/netfs/netfs.ko
kernel/fs/netfs/netfs.ko:
kernel/net/9p/9pnet.ko:
kernel/net/9p/9pnet_virtio.ko: kernel/drivers/virtio/virtio.ko kernel/net/9p/9pnet.ko
kernel/drivers/virtio/virtio.ko:
kernel/crypto/some-name.ko:
"""


def test_modules_come_after_those_they_need() -> None:
    order = initramfs.load_order(DEPENDENCIES, ["9pnet_virtio", "9p"])
    names = [initramfs.module_name(path) for path in order]
    assert sorted(names) == ["9p", "9pnet", "9pnet_virtio", "netfs", "virtio"]
    assert names.index("9pnet") < names.index("9pnet_virtio")
    assert names.index("9pnet") < names.index("9p") > names.index("netfs")


def test_a_module_that_is_built_in_is_left_out() -> None:
    assert initramfs.load_order(DEPENDENCIES, ["no_such"]) == []


def test_a_dash_in_a_files_name_is_an_underscore() -> None:
    assert initramfs.load_order(DEPENDENCIES, ["some_name"]) == ["kernel/crypto/some-name.ko"]


def test_a_signature_is_cut_off() -> None:
    signature = b"s" * 300
    tail = signature + bytes(8) + (300).to_bytes(4, "big") + b"~Module signature appended~\n"
    assert initramfs.unsigned(b"module" + tail) == b"module"
    assert initramfs.unsigned(b"module") == b"module"


def bzimage(payload: bytes) -> bytes:
    image = bytearray(0x1000)
    image[0x1F1] = 3
    struct.pack_into("<II", image, 0x248, 0x800, len(payload))
    return bytes(image[: 4 * 512 + 0x800]) + payload + b"after"


def test_the_kernel_is_taken_out_of_its_image() -> None:
    packed = lzma.compress(b"\x7fELF kernel") + b"size"
    assert debian.uncompressed(bzimage(packed)) == b"\x7fELF kernel"


def test_another_compression_is_named() -> None:
    with pytest.raises(HostError, match="not compressed with xz"):
        debian.uncompressed(bzimage(b"\x28\xb5\x2f\xfd zstd"))
