"""A guest's memory with a ring in it, twice over: one for each side of a comparison."""

from __future__ import annotations

import mmap
import struct

from kvmpv.dataplane.ring import Ring
from kvmpv.kvm._ioctl import address
from kvmpv.virtio.ring import DeviceRing, log_bytes
from kvmpv.virtio.spec import avail_bytes, desc_bytes, used_bytes

PAGE = 4096
SIZE = 8
# (guest address, bytes, offset in the file): the first two touch each other in the guest only.
LAYOUT = ((0, 3 * PAGE, 0), (3 * PAGE, 2 * PAGE, 5 * PAGE), (1 << 32, PAGE, 8 * PAGE))
WHOLE = 10 * PAGE
DESC, AVAIL, USED = 0, 0x400, 0x800
LOG = 9 * PAGE  # in the file, in no region
NEXT, WRITE, INDIRECT = 1, 2, 4


class Piece:
    """A region as the reference ring takes it."""

    def __init__(self, gpa: int, size: int, view: memoryview) -> None:
        self.gpa = gpa
        self.size = size
        self.view = view


class Guest:
    """Memory, and a driver that writes into it whatever it is told to."""

    def __init__(self, size: int = SIZE) -> None:
        self.size = size
        self.memory = memoryview(mmap.mmap(-1, WHOLE))
        self.base = address(self.memory)
        self.pieces = [
            Piece(gpa, length, self.memory[at : at + length]) for gpa, length, at in LAYOUT
        ]

    def put(self, gpa: int, data: bytes) -> None:
        """Write at a guest address that is RAM."""
        for piece in self.pieces:
            start = gpa - piece.gpa
            if start >= 0 and start + len(data) <= piece.size:
                piece.view[start : start + len(data)] = data
                return
        raise AssertionError(f"no RAM at {gpa:#x}")

    def describe(
        self, index: int, gpa: int, length: int, flags: int = 0, following: int = 0, at: int = DESC
    ) -> None:
        """Write one descriptor."""
        self.put(at + 16 * index, struct.pack("<QIHH", gpa, length, flags, following))

    def offer(self, slot: int, head: int) -> None:
        """Write one entry of the available ring."""
        self.put(AVAIL + 4 + 2 * (slot % self.size), struct.pack("<H", head))

    def avail_index(self, index: int) -> None:
        """Move the available ring's index."""
        self.put(AVAIL + 2, struct.pack("<H", index & 0xFFFF))

    def make_available(self, *heads: int, start: int = 0) -> None:
        """Offer heads one after the other, and say so."""
        for slot, head in enumerate(heads, start):
            self.offer(slot, head)
        self.avail_index(start + len(heads))

    def word(self, gpa: int) -> int:
        """Read 16 bits."""
        value: int = struct.unpack_from("<H", self.memory, gpa)[0]
        return value

    def used_index(self) -> int:
        """Return how far the device says it is."""
        return self.word(USED + 2)

    def used(self, slot: int) -> tuple[int, int]:
        """Return an entry of the used ring: head and bytes written."""
        at = USED + 4 + 8 * (slot % self.size)
        head, written = struct.unpack_from("<II", self.memory, at)
        return head, written

    def compiled(self, features: int = 0, base: int = 0, log: bool = False) -> Ring:
        """Return the compiled device's side."""
        return Ring(
            [(gpa, size, self.base + at) for gpa, size, at in LAYOUT],
            self.size,
            self.base + DESC,
            self.base + AVAIL,
            self.base + USED,
            features,
            base,
            self.base + LOG if log else 0,
        )

    def reference(self, features: int = 0, base: int = 0, log: bool = False) -> DeviceRing:
        """Return the reference device's side."""
        area = self.pieces[0].view
        return DeviceRing(
            self.pieces,
            self.size,
            area[DESC : DESC + desc_bytes(self.size)],
            area[AVAIL : AVAIL + avail_bytes(self.size)],
            area[USED : USED + used_bytes(self.size)],
            features,
            base,
            self.memory[LOG : LOG + log_bytes(self.size)] if log else None,
        )

    def offsets(self, pieces: list[memoryview]) -> list[tuple[int, int]]:
        """Say where pieces of the reference lie, as the compiled ring says it."""
        return [(address(piece), len(piece)) for piece in pieces]
