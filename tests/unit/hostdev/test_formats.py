"""What a file begins with tells its format."""

from __future__ import annotations

import pytest

from kvmpv.hostdev import formats


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"QFI\xfb\0\0\0\3", "qcow2"),
        (b"QFI\xfb\0\0\0\1", "qcow"),
        (b"KDMV", "vmdk"),
        (b"conectix", "vpc"),
        (b"vhdxfile", "vhdx"),
        (bytes(64) + b"\x7f\x10\xda\xbe", "vdi"),
        (b"", "raw"),
        (b"MZ", "raw"),
    ],
)
def test_format_is_told_by_its_magic(head: bytes, kind: str) -> None:
    assert formats.format_of(head.ljust(formats.HEAD, b"\0")) == kind
