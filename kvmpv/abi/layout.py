"""Describe the C records of the ABI: little-endian, no hidden padding."""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any


class Layout:
    """Hold one record's layout, from text like ``"version:H size:H instance:16s"``.

    ``format`` and ``size`` are those of module struct, ``fields`` the names in their order,
    ``offset`` maps a name to its place in bytes.
    """

    __slots__ = ("_struct", "fields", "format", "offset", "size")

    def __init__(self, text: str) -> None:
        pairs = [item.split(":") for item in text.split()]
        self.fields = tuple(name for name, _ in pairs)
        self.format = "<" + "".join(code for _, code in pairs)
        self._struct = struct.Struct(self.format)
        self.size = self._struct.size
        self.offset = {}
        at = 0
        for name, code in pairs:
            self.offset[name] = at
            at += struct.calcsize("<" + code)

    def pack(self, *values: object) -> bytes:
        """Return the record that holds the values, one for each field."""
        return self._struct.pack(*values)

    def unpack(self, data: bytes | bytearray | memoryview) -> tuple[Any, ...]:
        """Return the values of the record at the start of data, which may be longer."""
        return self._struct.unpack_from(data)

    def unpack_all(self, data: bytes | bytearray | memoryview) -> Iterator[tuple[Any, ...]]:
        """Return the values of each record; data is as long as a whole number of them."""
        return self._struct.iter_unpack(data)
