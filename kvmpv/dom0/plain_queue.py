"""A queue served by the main thread, in Python: for devices whose requests are few.

What breaks a ring ends that queue, and is told by the queue's error eventfd: the front end turns
that into NEEDS_RESET.
"""

from __future__ import annotations

import _thread
import os

from kvmpv.errors import VhostUserError
from kvmpv.vhostuser import _shm
from kvmpv.virtio import ring, spec
from kvmpv.virtio.ring import DeviceRing, RingBroken

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from kvmpv.dom0.slot import Slot
    from kvmpv.vhostuser.device import Vring
    from kvmpv.vhostuser.shared import MemoryRegion
    from kvmpv.virtio.ring import Chain


# What a device offers that is served by such queues.
PLAIN_FEATURES: Final = 1 << spec.F_VERSION_1 | 1 << spec.F_INDIRECT_DESC | 1 << spec.F_EVENT_IDX
# Taking a lock is the full barrier that must lie between asking for a kick and a last look.
FENCE: Final = _thread.allocate_lock()


class PlainQueue:
    """Call ``serve`` when the driver kicks, while the queue is enabled.

    A ``pop`` that finds nothing is a promise: the driver kicks when there is something again. The
    driver is always signalled, which it bears.
    """

    __slots__ = (
        "_dirty",
        "_event_index",
        "_serve",
        "_slot",
        "_vring",
        "broken",
        "recovered",
        "ring",
    )

    def __init__(
        self,
        slot: Slot,
        regions: list[MemoryRegion],
        vring: Vring,
        features: int,
        serve: Callable[[], None],
    ) -> None:
        if vring.kick < 0:
            raise VhostUserError("this device does not poll its queues", hint="give it a kick")
        size = vring.num
        log = _shm.view(vring.inflight, ring.log_bytes(size)) if vring.inflight else None
        self._slot = slot
        self._vring = vring
        self._serve = serve
        self._dirty = False
        self._event_index = bool(features >> spec.F_EVENT_IDX & 1)
        self.broken = False
        self.ring = DeviceRing(
            regions,
            size,
            _shm.view(vring.desc, spec.desc_bytes(size)),
            _shm.view(vring.avail, spec.avail_bytes(size)),
            _shm.view(vring.used, spec.used_bytes(size)),
            features,
            vring.base,
            log,
        )
        # What a predecessor had taken and not given back; it is served like all else.
        self.recovered = list(self.ring.recovered)
        slot.watch(vring.kick, self._kicked)

    @property
    def enabled(self) -> bool:
        """Whether the driver's requests are to be served."""
        return self._vring.enabled and not self.broken

    def _kicked(self) -> None:
        try:
            os.eventfd_read(self._vring.kick)
        except BlockingIOError:
            pass
        self.run()

    def run(self) -> None:
        """Serve what is there."""
        if self.enabled:
            self._serve()
            self.flush()

    def pop(self) -> Chain | None:
        """Return the next chain, None if there is none or the driver has broken the ring."""
        if self.broken:
            return None
        try:
            if self.recovered:
                return self.ring.walk(self.recovered.pop(0))
            chain = self.ring.pop()
            if chain is None and self._event_index:
                self.ring.enable_kicks()
                with FENCE:
                    chain = self.ring.pop()
            return chain
        except RingBroken as broken:
            self.fail(str(broken))
            return None

    def unpop(self, chain: Chain) -> None:
        """Put back the chain that was taken last."""
        self.ring.unpop(chain.head)

    def push(self, chain: Chain, written: int) -> None:
        """Give a chain back, its first ``written`` bytes written; shown with ``flush``."""
        self.ring.push(chain.head, written)
        self._dirty = True

    def drop_recovered(self) -> None:
        """Give back unanswered what a predecessor had taken."""
        while self.recovered:
            self.ring.push(self.recovered.pop(0), 0)
            self._dirty = True
        self.flush()

    def flush(self) -> None:
        """Show the driver what was given back."""
        if not self._dirty:
            return
        self._dirty = False
        self.ring.publish()
        try:
            os.eventfd_write(self._vring.call, 1)
        except BlockingIOError:
            pass  # nobody has read it for an eternity

    def fail(self, why: str) -> None:
        """Give the queue up: its driver has broken it."""
        self.broken = True
        self._slot.unwatch(self._vring.kick)
        self._slot.log(f"its driver broke a queue: {why}")
        if self._vring.err >= 0:
            os.eventfd_write(self._vring.err, 1)

    def stop(self) -> int:
        """Serve it no more; return the next avail index."""
        self._slot.unwatch(self._vring.kick)
        self.flush()
        return self.ring.next_avail
