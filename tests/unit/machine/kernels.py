"""Make kernels, good and bad, for the loader's tests."""

from __future__ import annotations

import struct

HEADER = struct.Struct("<4sBBB9xHHIQQQIHHH6x")
SEGMENT = struct.Struct("<IIQQQQQQ")
HEADER_FIELDS = (
    "magic", "bits", "order", "version", "kind", "machine", "version2", "entry", "table",
    "sections", "flags", "size", "entry_size", "count",
)  # fmt: skip
SEGMENT_FIELDS = (
    "kind", "flags", "offset", "virtual", "address", "in_file", "in_memory", "alignment",
)  # fmt: skip

CODE = b"\xf4code of a kernel"
LOAD_AT = 1 << 20


def elf(segment: dict[str, int] | None = None, **header: int | bytes) -> bytes:
    """Return an ELF file with one segment; keywords put other values into its header."""
    start = HEADER.size + SEGMENT.size
    fields: dict[str, int | bytes] = {
        **dict.fromkeys(HEADER_FIELDS, 0),
        "magic": b"\x7fELF", "bits": 2, "order": 1, "version": 1, "kind": 2, "machine": 62,
        "entry": LOAD_AT, "table": HEADER.size, "size": HEADER.size, "entry_size": SEGMENT.size,
        "count": 1,
    }  # fmt: skip
    places = {
        "kind": 1, "flags": 5, "offset": start, "virtual": 0, "address": LOAD_AT,
        "in_file": len(CODE), "in_memory": 2 * len(CODE), "alignment": 4096,
    }  # fmt: skip
    head = HEADER.pack(*(fields | header).values())
    return head + SEGMENT.pack(*(places | (segment or {})).values()) + CODE


def bzimage(**fields: int) -> bytes:
    """Return a bzImage with one sector of set-up; keywords put other values into its header."""
    head = bytearray(1024)
    body = bytes(512) + CODE.ljust(512, b"\0")
    places = {
        "sectors": ("<B", 0x1F1, 1), "paragraphs": ("<I", 0x1F4, len(body) // 16),
        "flag": ("<H", 0x1FE, 0xAA55), "jump": ("<B", 0x201, 0x6A),
        "magic": ("<4s", 0x202, b"HdrS"), "version": ("<H", 0x206, 0x20F),
        "xloadflags": ("<H", 0x236, 1),
        "init_size": ("<I", 0x260, 0x10000),
    }  # fmt: skip
    for name, (code, at, value) in places.items():
        struct.pack_into(code, head, at, fields.get(name, value))
    return bytes(head) + body
