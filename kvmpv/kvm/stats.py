"""The kernel's binary statistics of a VM or a vCPU (KVM_GET_STATS_FD)."""

from __future__ import annotations

from os import close as _close
from os import pread as _pread
from struct import Struct

from . import uapi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_HEADER = Struct(uapi.FORMAT_STATS_HEADER)
_DESC = Struct(uapi.FORMAT_STATS_DESC)

UNITS: Final = ("", "bytes", "seconds", "cycles", "boolean")
TYPES: Final = ("cumulative", "instant", "peak", "linear histogram", "log histogram")


class StatDescriptor:
    """Describe one statistic: what it is called, what it counts, and where its values are."""

    __slots__ = ("base", "bucket_size", "count", "exponent", "kind", "name", "offset", "unit")

    def __init__(self, name: str, fields: tuple[int, int, int, int, int]) -> None:
        flags, self.exponent, self.count, self.offset, self.bucket_size = fields
        self.name = name
        self.kind = _named(TYPES, flags & uapi.KVM_STATS_TYPE_MASK)
        self.unit = _named(UNITS, (flags & uapi.KVM_STATS_UNIT_MASK) >> uapi.KVM_STATS_UNIT_SHIFT)
        pow2 = flags & uapi.KVM_STATS_BASE_MASK == uapi.KVM_STATS_BASE_POW2
        self.base = 2 if pow2 else 10

    def __repr__(self) -> str:
        scale = f" x {self.base}^{self.exponent}" if self.exponent else ""
        return f"<{self.name}: {self.kind} {self.unit or 'count'}{scale}, {self.count} value(s)>"


def _named(names: tuple[str, ...], number: int) -> str:
    # A newer kernel may know more kinds than we do: their numbers still count.
    return names[number] if number < len(names) else f"unknown {number}"


class Stats:
    """Read the statistics of one VM or vCPU; owns the descriptor it is given."""

    __slots__ = ("_data", "_size", "descriptors", "fd", "id")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        header = _HEADER.unpack(_pread(fd, _HEADER.size, 0))
        _, name_size, count, id_at, descriptors_at, self._data = header
        self.id = _text(_pread(fd, name_size, id_at))
        step = _DESC.size + name_size
        block = _pread(fd, step * count, descriptors_at)
        self.descriptors = [
            StatDescriptor(_text(block[at + _DESC.size : at + step]), _DESC.unpack_from(block, at))
            for at in range(0, step * count, step)
        ]
        self._size = max((d.offset + 8 * d.count for d in self.descriptors), default=0)

    def values(self) -> dict[str, tuple[int, ...]]:
        """Return every statistic's values now: one, or a histogram's buckets."""
        words = memoryview(_pread(self.fd, self._size, self._data)).cast("Q")
        return {
            d.name: tuple(words[d.offset // 8 : d.offset // 8 + d.count]) for d in self.descriptors
        }

    def read(self) -> dict[str, int]:
        """Return the statistics that have one value; histograms are left out."""
        return {name: values[0] for name, values in self.values().items() if len(values) == 1}

    def close(self) -> None:
        """Close the descriptor; doing so again does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            _close(fd)

    def __enter__(self) -> Stats:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("ascii", "replace")
