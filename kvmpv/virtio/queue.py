"""One queue of a device, as its driver has set it up."""

from __future__ import annotations

import os
import select

from kvmpv.virtio import spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpv.memory import GuestMemory


def signal(fd: int) -> None:
    """Signal an eventfd that is a backend's too.

    That may have filled it up, or have made it block: it is signalled then as it is.
    """
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    if poll.poll(0):
        try:
            os.eventfd_write(fd, 1)
        except BlockingIOError:
            return


class Queue:
    """A queue: where its three parts lie in guest memory, and its two eventfds while it is set up.

    ``vector`` is the transport's own: what the driver is interrupted by. ``base`` is the index in
    the available ring that a backend goes on from.
    """

    __slots__ = (
        "available",
        "base",
        "call",
        "connected",
        "descriptors",
        "enabled",
        "index",
        "kick",
        "live",
        "ring_max",
        "size",
        "used",
        "vector",
    )

    def __init__(self, index: int, ring_max: int) -> None:
        self.index = index
        self.ring_max = ring_max
        self.kick = self.call = -1
        self.forget()

    def forget(self) -> None:
        """Return to the state after a reset."""
        self.size = self.base = 0
        self.descriptors = self.available = self.used = 0
        self.vector = 0
        self.enabled = True
        self.live = False  # a backend may be using it
        self.connected = False  # its doorbell is there
        for fd in (self.kick, self.call):
            if fd >= 0:
                os.close(fd)
        self.kick = self.call = -1

    def open(self) -> None:
        """Make the eventfds."""
        self.kick = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.call = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def call_driver(self) -> None:
        """Interrupt the driver, whether there is something for it or not."""
        if self.call >= 0:
            signal(self.call)

    def is_ring(self) -> bool:
        """Tell whether size and addresses are those of a split ring (2.7)."""
        aligned = (
            not self.descriptors % spec.DESC_ALIGN
            and not self.available % spec.AVAIL_ALIGN
            and not self.used % spec.USED_ALIGN
        )
        return aligned and 0 < self.size <= self.ring_max and not self.size & (self.size - 1)

    def is_in(self, memory: GuestMemory) -> bool:
        """Tell whether each of the three parts lies in RAM, in one piece."""
        parts = (
            (self.descriptors, spec.desc_bytes(self.size)),
            (self.available, spec.avail_bytes(self.size)),
            (self.used, spec.used_bytes(self.size)),
        )
        return all(memory.slice(gpa, length) is not None for gpa, length in parts)

    def indices(self, memory: GuestMemory) -> tuple[int, int]:
        """Return the available and the used index, as guest memory has them now."""
        return _index(memory, self.available), _index(memory, self.used)

    def state(self) -> dict[str, int]:
        """Return what restore() takes; the backend has been stopped, ``base`` is its own."""
        return {name: getattr(self, name) for name in _SAVED}

    def restore(self, state: dict[str, int]) -> None:
        """Become what state() described."""
        for name in _SAVED:
            setattr(self, name, state[name])


_SAVED = ("size", "base", "descriptors", "available", "used", "vector", "enabled")


def _index(memory: GuestMemory, ring: int) -> int:
    found = memory.slice(ring + 2, 2)
    return 0 if found is None else int.from_bytes(found, "little")
