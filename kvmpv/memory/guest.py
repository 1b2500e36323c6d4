"""Guest memory: a list of regions, each a piece of a sealed memfd mapped into this process.

Every access by guest-physical address goes through ``GuestMemory.slice``, which refuses what is
not RAM, wraps, or crosses from one region into the next.
"""

from __future__ import annotations

import errno
import os

from kvmpv.errors import BadInput, HostError
from kvmpv.memory import _map
from kvmpv.memory.memfd import is_sealed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Final, Self

HUGE_PAGE: Final = 2 << 20

MADV_REMOVE: Final = 9
MADV_HUGEPAGE: Final = 14
MADV_COLLAPSE: Final = 25  # since Linux 6.1
COLLAPSE_ROUNDS: Final = 2


class Region:
    """A piece of guest RAM: ``[gpa, gpa + size)``, backed by ``fd`` from ``offset`` on."""

    __slots__ = ("_view", "address", "fd", "gpa", "offset", "size")

    def __init__(self, gpa: int, size: int, fd: int, offset: int) -> None:
        if not is_sealed(fd):
            raise BadInput("guest memory is not sealed", hint="add F_SEAL_SHRINK, GROW and SEAL")
        self.gpa = gpa
        self.size = size
        self.fd = fd
        self.offset = offset
        self.address = _map.map_shared(fd, size, offset, HUGE_PAGE)
        if self.address < 0:
            reason = os.strerror(-self.address)
            raise HostError(f"cannot map {size} bytes of guest memory: {reason}")
        self._view = _map.view(self.address, size)
        # Refused where the kernel has no huge pages for shared memory: slower, not wrong.
        _map.advise(self.address, size, MADV_HUGEPAGE)

    @property
    def view(self) -> memoryview:
        """All of the region's bytes."""
        return self._view

    def collapse(self, start: int, length: int) -> int:
        """Ask for huge pages under ``length`` bytes from ``start``; return how many there are now.

        One by one, for the kernel stops at the first that nothing has been written to.
        """
        first = start & ~(HUGE_PAGE - 1)
        end = min(start + length, self.size)
        missing = list(range(first, end, HUGE_PAGE))
        there = 0
        for _ in range(COLLAPSE_ROUNDS):
            busy = []  # its guest was using it
            for at in missing:
                error = _map.advise(self.address + at, HUGE_PAGE, MADV_COLLAPSE)
                there += not error
                if error == -errno.EAGAIN:
                    busy.append(at)
            missing = busy
        return there

    def clear(self) -> None:
        """Give all pages back: the region reads as zeroes, as it did when it was made."""
        if _map.advise(self.address, self.size, MADV_REMOVE) < 0:
            self._view[:] = bytes(self.size)

    def close(self) -> None:
        """Unmap the region; the descriptor stays its owner's."""
        if self.address > 0:
            self._view.release()
            _map.unmap(self.address, self.size)
            self.address = 0


class GuestMemory:
    """The regions of one guest, in ascending order of their guest-physical addresses."""

    __slots__ = ("regions",)

    def __init__(self, regions: Sequence[Region]) -> None:
        self.regions = sorted(regions, key=lambda region: region.gpa)
        for below, above in zip(self.regions, self.regions[1:], strict=False):
            if below.gpa + below.size > above.gpa:
                raise BadInput(f"memory regions at {below.gpa:#x} and {above.gpa:#x} overlap")

    @property
    def size(self) -> int:
        """Bytes of RAM in all."""
        return sum(region.size for region in self.regions)

    def slice(self, gpa: int, length: int) -> memoryview | None:
        """Return ``length`` bytes at ``gpa``, or None unless all of them are RAM of one region.

        Both numbers may be whatever a guest has put into a 64-bit register.
        """
        for region in self.regions:
            start = gpa - region.gpa
            if 0 <= start < region.size:
                return (
                    region.view[start : start + length] if length <= region.size - start else None
                )
        return None

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Write ``data`` at ``gpa``; raise ``BadInput`` where that is not RAM."""
        target = self.slice(gpa, len(data))
        if target is None:
            raise BadInput(f"{len(data)} bytes at {gpa:#x} do not lie in guest memory")
        target[:] = data

    def readinto(self, gpa: int, length: int, fd: int, offset: int) -> None:
        """Read ``length`` bytes of the file ``fd`` from ``offset`` into memory at ``gpa``.

        Raise ``BadInput`` where that is not RAM, or the file is shorter.
        """
        target = self.slice(gpa, length)
        if target is None:
            raise BadInput(
                f"{length} bytes at {gpa:#x} do not lie in guest memory", hint="give more memory"
            )
        done = 0
        while done < length:
            count = os.preadv(fd, [target[done:]], offset + done)
            if not count:
                raise BadInput(f"the file ends {length - done} bytes early: it is truncated")
            done += count

    def collapse(self, pieces: Iterable[tuple[int, int]]) -> None:
        """Ask for huge pages under pieces ``(gpa, length)`` of RAM; takes a while, holds no lock.

        For hosts whose shared memory gets no huge pages by itself: elsewhere they are there
        already, and this costs next to nothing. What the guest touches first stays in small ones.
        """
        for gpa, length in pieces:
            for region in self.regions:
                if region.gpa <= gpa < region.gpa + region.size:
                    region.collapse(gpa - region.gpa, length)

    def clear(self) -> None:
        """Zero all of it."""
        for region in self.regions:
            region.clear()

    def close(self) -> None:
        """Unmap all regions."""
        for region in self.regions:
            region.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def map_regions(pieces: Iterable[tuple[int, int, int, int]]) -> GuestMemory:
    """Map pieces ``(gpa, size, fd, offset)`` and return them as one guest's memory."""
    regions: list[Region] = []
    try:
        for gpa, size, fd, offset in pieces:
            regions.append(Region(gpa, size, fd, offset))
        return GuestMemory(regions)
    except BaseException:
        for region in regions:
            region.close()
        raise
