"""A driver's side of a split ring in shared memory, and a device that is driven by hand.

What a guest and its VMM are to a back end: memory, rings with buffers, and a front end.
"""

from __future__ import annotations

import mmap
import os
import select
import struct
from typing import TYPE_CHECKING

from kvmpv.vhostuser import message
from tests.unit.vhostuser.peer import MIB, SEALS, USER, memfd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvmpv.vhostuser.frontend import Frontend

DESC = struct.Struct("<QIHH")
NEXT, WRITE = 1, 2
VERSION_1 = 1 << 32


class Memory:
    """Guest memory of one region, and where in it the next buffer goes."""

    def __init__(self, size: int = 8 * MIB, seals: int = SEALS) -> None:
        self.size = size
        self.fd = memfd(size, seals)
        self.map = mmap.mmap(self.fd, size)
        self.next = 0x10000

    def table(self) -> list[tuple[int, int, int, int, int]]:
        """Return it as the front end shares it."""
        return [(0, self.size, USER, 0, self.fd)]

    def take(self, size: int, alignment: int = 16) -> int:
        """Return the address of bytes that nobody has yet."""
        at = (self.next + alignment - 1) & -alignment
        self.next = at + size
        assert self.next <= self.size
        return at

    def put16(self, at: int, value: int) -> None:
        """Store an index whole, as the device's threads look at it: struct writes zeroes first."""
        with memoryview(self.map) as view, view[at : at + 2] as part, part.cast("H") as word:
            word[0] = value

    def put(self, data: bytes) -> int:
        """Place data and return its address."""
        at = self.take(len(data))
        self.map[at : at + len(data)] = data
        return at

    def close(self) -> None:
        self.map.close()
        os.close(self.fd)


class DriverRing:
    """A ring as its driver has it; chains are made of ``(address, length, writable)``."""

    def __init__(self, memory: Memory, size: int = 64) -> None:
        self.memory = memory
        self.size = size
        self.desc = memory.take(16 * size, 4096)
        self.avail = memory.take(6 + 2 * size, 4096)
        self.used = memory.take(6 + 8 * size, 4096)
        self.kick = os.eventfd(0, os.EFD_NONBLOCK)
        self.call = os.eventfd(0, os.EFD_NONBLOCK)
        self.err = os.eventfd(0, os.EFD_NONBLOCK)
        self.free = list(range(size))
        self.chains: dict[int, list[int]] = {}
        self.posted = 0
        self.seen = 0

    def post(self, *pieces: tuple[int, int, bool], kick: bool = True) -> int:
        """Offer a chain; return its head."""
        indices = [self.free.pop(0) for _ in pieces]
        for number, (address, length, writable) in enumerate(pieces):
            last = number + 1 == len(pieces)
            flags = (WRITE if writable else 0) | (0 if last else NEXT)
            following = 0 if last else indices[number + 1]
            at = self.desc + 16 * indices[number]
            DESC.pack_into(self.memory.map, at, address, length, flags, following)
        self.chains[indices[0]] = indices
        self.offer(indices[0])
        if kick:
            os.eventfd_write(self.kick, 1)
        return indices[0]

    def offer(self, head: int) -> None:
        """Put a head into the available ring, whatever it is."""
        slot = self.avail + 4 + 2 * (self.posted % self.size)
        self.memory.put16(slot, head)
        self.posted = (self.posted + 1) & 0xFFFF
        self.memory.put16(self.avail + 2, self.posted)

    @property
    def used_index(self) -> int:
        found: int = struct.unpack_from("<H", self.memory.map, self.used + 2)[0]
        return found

    def take_used(self) -> tuple[int, int] | None:
        """Return the next chain that came back, as head and bytes written, or None."""
        if self.used_index == self.seen:
            return None
        at = self.used + 4 + 8 * (self.seen % self.size)
        head, written = struct.unpack_from("<II", self.memory.map, at)
        assert head in self.chains, f"chain {head} came back, at {self.seen} of {self.used_index}"
        self.seen = (self.seen + 1) & 0xFFFF
        self.free += self.chains.pop(head)
        return head, written

    def state(self) -> str:
        """Say how far driver and device are, for whoever has to find out why nothing comes."""
        word = struct.Struct("<H").unpack_from
        event = word(self.memory.map, self.avail + 4 + 2 * self.size)[0]
        kick = word(self.memory.map, self.used + 4 + 8 * self.size)[0]
        return (
            f"posted {self.posted}, used {self.used_index}, seen {self.seen}, "
            f"used_event {event}, avail_event {kick}"
        )

    def wait(self, seconds: float = 5) -> tuple[int, int]:
        """Wait for the next chain that comes back."""
        while (found := self.take_used()) is None:
            assert readable(self.call, seconds), f"no answer: {self.state()}"
            os.eventfd_read(self.call)
        return found

    def give_to(
        self, frontend: Frontend, index: int, base: int = 0, *, enable: bool = True
    ) -> None:
        """Set the ring up at a back end, and start it."""
        frontend.set_vring_num(index, self.size)
        frontend.set_vring_base(index, base)
        parts = (USER + self.desc, USER + self.used, USER + self.avail)
        frontend.set_vring_addr(index, *parts)
        frontend.set_vring_call(index, self.call)
        frontend.set_vring_err(index, self.err)
        frontend.set_vring_kick(index, self.kick)
        if enable:
            frontend.set_vring_enable(index, True)

    def close(self) -> None:
        for fd in (self.kick, self.call, self.err):
            os.close(fd)


class Driver:
    """A device's driver and front end in one: memory, negotiated features, rings that run."""

    def __init__(
        self,
        frontend: Frontend,
        sizes: Sequence[int],
        *,
        features: int = VERSION_1,
        memory: Memory | None = None,
    ) -> None:
        self.frontend = frontend
        self.memory = memory or Memory()
        frontend.negotiate()
        accepted = frontend.features & (features | message.F_PROTOCOL_FEATURES)
        frontend.set_features(accepted)
        frontend.set_mem_table(self.memory.table())
        self.rings = [DriverRing(self.memory, size) for size in sizes]

    def start(self) -> None:
        """Give all rings to the back end."""
        for index, ring in enumerate(self.rings):
            ring.give_to(self.frontend, index)

    def close(self) -> None:
        self.frontend.close()
        for ring in self.rings:
            ring.close()
        self.memory.close()


def readable(fd: int, seconds: float) -> bool:
    """Wait until a descriptor is readable; say whether it is."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
