"""Memory that a front end shares: checked before it is mapped, mapped once for all its users.

A file that its owner may still truncate is a SIGBUS in whoever maps it: without the seals against
that it is refused, unless the user said that this peer may be trusted.
"""

from __future__ import annotations

import fcntl
import os

from kvmpv.errors import VhostUserError
from kvmpv.vhostuser import _shm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
ADDRESS_MAX: Final = 1 << 64
PAGE: Final = 4096
NO_SEALS: Final = 0

# A worker's devices are handed the same memory: one mapping, and one set of page tables, do.
_mappings: dict[tuple[int, int, int, int], Mapping] = {}


class Mapping:
    """A piece of a file mapped into this process, with the number of its users."""

    __slots__ = ("address", "key", "length", "users")

    def __init__(self, key: tuple[int, int, int, int], address: int, length: int) -> None:
        self.key = key
        self.address = address
        self.length = length
        self.users = 1

    def release(self) -> None:
        """Say that one user less needs it; the last one's release unmaps it."""
        self.users -= 1
        if not self.users:
            del _mappings[self.key]
            _shm.unmap(self.address, self.length)
            self.address = 0

    @property
    def view(self) -> memoryview:
        """All of its bytes; not to be used after the release."""
        return _shm.view(self.address, self.length)


def seals(fd: int) -> int:
    """Return the seals of a file; a file that can have none has none."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return NO_SEALS


def map_file(what: str, fd: int, offset: int, size: int, *, unsealed: bool = False) -> Mapping:
    """Map a piece of a file, or take the mapping of it that is there already.

    Raise ``VhostUserError`` where the piece is empty, does not lie in the file, or could be
    truncated while it is mapped.
    """
    if size <= 0 or offset % PAGE or offset + size > ADDRESS_MAX // 2:
        raise VhostUserError(f"{what}: {size:#x} bytes at {offset:#x} of a file cannot be mapped")
    if not unsealed and seals(fd) & SEALS != SEALS:
        hint = "share it as a memfd with F_SEAL_SHRINK and F_SEAL_GROW, or allow --unsealed"
        raise VhostUserError(f"{what} could be truncated under us", hint=hint)
    file = os.fstat(fd)
    if offset + size > file.st_size:
        have = f"the file has {file.st_size:#x} bytes, not {offset + size:#x}"
        raise VhostUserError(f"{what} is truncated: {have}")
    page = max(file.st_blksize, PAGE)  # of a file of huge pages: their size
    length = (size + page - 1) // page * page
    key = (file.st_dev, file.st_ino, offset, length)
    there = _mappings.get(key)
    if there is not None:
        there.users += 1
        return there
    address = _shm.map_shared(fd, length, offset)
    if address < 0:
        raise VhostUserError(f"{what} cannot be mapped: {os.strerror(-address)}")
    made = _mappings[key] = Mapping(key, address, length)
    return made


class MemoryRegion:
    """A piece of guest memory: where the guest has it, the front end, and this process.

    ``address`` is ours; ``user_address`` is the front end's, which it gives rings by. ``shares``
    is how many times it was shared, and so has to be taken back.
    """

    __slots__ = ("fd", "gpa", "mapping", "offset", "shares", "size", "user_address")

    def __init__(
        self, gpa: int, size: int, user_address: int, offset: int, fd: int, mapping: Mapping
    ) -> None:
        self.gpa = gpa
        self.size = size
        self.user_address = user_address
        self.offset = offset
        self.fd = fd
        self.mapping = mapping
        self.shares = 1

    @property
    def key(self) -> tuple[int, int, int]:
        """What a front end takes it back by: its two addresses, and its size."""
        return self.gpa, self.size, self.user_address

    @property
    def address(self) -> int:
        """Where this process has it."""
        return self.mapping.address

    @property
    def view(self) -> memoryview:
        """All of its bytes; not to be used once the region is closed."""
        return _shm.view(self.mapping.address, self.size)

    def overlaps(self, other: MemoryRegion) -> bool:
        """Whether they share an address of the guest's or of the front end's."""
        in_guest = self.gpa < other.gpa + other.size and other.gpa < self.gpa + self.size
        ours, theirs = self.user_address, other.user_address
        return in_guest or (ours < theirs + other.size and theirs < ours + self.size)

    def close(self) -> None:
        """Unmap it, and close its descriptor."""
        self.mapping.release()
        os.close(self.fd)


def map_region(
    record: tuple[int, int, int, int], fd: int, *, unsealed: bool = False
) -> MemoryRegion:
    """Map a region of the protocol (guest address, size, user address, offset); it gets ``fd``.

    Raise ``VhostUserError`` where its addresses wrap or it cannot be mapped; the descriptor is the
    caller's then.
    """
    gpa, size, user_address, offset = record
    if not size or gpa + size > ADDRESS_MAX or user_address + size > ADDRESS_MAX:
        raise VhostUserError(f"a memory region of {size:#x} bytes at {gpa:#x} cannot be")
    what = f"guest memory at {gpa:#x}"
    mapping = map_file(what, fd, offset, size, unsealed=unsealed)
    return MemoryRegion(gpa, size, user_address, offset, fd, mapping)


def translate(regions: list[MemoryRegion], user_address: int, length: int) -> int:
    """Return our address of ``length`` bytes that lie in one region, or 0."""
    for region in regions:
        start = user_address - region.user_address
        if start >= 0 and start + length <= region.size:
            return region.address + start
    return 0
