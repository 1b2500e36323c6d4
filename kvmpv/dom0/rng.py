"""virtio-rng: random numbers of the host's, at a rate that a guest cannot exceed.

Options: ``rate``, in bytes a second (0: any), 1 MiB a second unless given.
"""

from __future__ import annotations

import os
import time

from kvmpv.dom0.plain_queue import PLAIN_FEATURES, PlainQueue
from kvmpv.dom0.slot import ServedDevice
from kvmpv.errors import BadInput
from kvmpv.vhostuser import message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from kvmpv.vhostuser.device import Vring
    from kvmpv.vhostuser.shared import MemoryRegion
    from kvmpv.virtio.ring import Chain

DEFAULT_RATE: Final = 1 << 20
AT_ONCE: Final = 4096  # bytes that one request gets: a driver asks again for more
TURN: Final = 64  # requests before other devices get their turn
SECOND_NS: Final = 1_000_000_000


class TokenBucket:
    """Tell how much may be had now: ``rate`` a second, ``burst`` at most; a rate of 0 is any."""

    __slots__ = ("_at_ns", "_level", "burst", "rate")

    def __init__(self, rate: int, burst: int) -> None:
        self.rate = rate
        self.burst = burst
        self._level = burst
        self._at_ns = time.monotonic_ns()

    def take(self, wanted: int) -> int:
        """Take up to ``wanted``; return how much that was."""
        if not self.rate:
            return wanted
        now = time.monotonic_ns()
        filled = (now - self._at_ns) * self.rate // SECOND_NS
        if filled:
            self._level = min(self._level + filled, self.burst)
            self._at_ns = now
        taken = min(wanted, self._level)
        self._level -= taken
        return taken

    def ready_ns(self, wanted: int) -> int:
        """Return the moment, on the monotonic clock, at which that much can be taken."""
        missing = max(min(wanted, self.burst) - self._level, 0)
        return self._at_ns + (missing * SECOND_NS + self.rate - 1) // max(self.rate, 1)


class RngDevice(ServedDevice):
    """One queue of buffers that are filled with random bytes."""

    features = PLAIN_FEATURES
    # A request is taken and given back in one go: nothing is lost with a worker that dies.
    protocol_features = message.PF_INFLIGHT_SHMFD
    queue_count = 1

    def __init__(self, options: dict[str, str]) -> None:
        self._bucket = _bucket(options)
        self._regions: list[MemoryRegion] = []
        self._features = 0
        self._queue: PlainQueue | None = None
        self._requests = self._bytes = self._throttled = 0

    def set_features(self, features: int) -> None:
        self._features = features

    def set_memory(self, regions: list[MemoryRegion]) -> None:
        self._regions = regions

    def start_queue(self, index: int, vring: Vring) -> None:
        self._queue = PlainQueue(self.slot, self._regions, vring, self._features, self._serve)
        self._queue.run()

    def stop_queue(self, index: int) -> int:
        self.slot.forget(self._again)
        queue, self._queue = self._queue, None
        return queue.stop() if queue else 0

    def set_enabled(self, index: int, enabled: bool) -> None:
        if self._queue is not None:
            self._queue.run()

    def _again(self) -> None:
        if self._queue is not None:
            self._queue.run()

    def _serve(self) -> None:
        queue = self._queue
        for _ in range(TURN):
            if queue is None or self._bucket.take(1) == 0:
                break
            chain = queue.pop()
            if chain is None:
                return
            queue.push(chain, self._fill(chain))
        else:
            self.slot.call_at(0, self._again)
            return
        self._throttled += 1
        self.slot.call_at(self._bucket.ready_ns(64), self._again)

    def _fill(self, chain: Chain) -> int:
        room = min(sum(len(piece) for piece in chain.writable), AT_ONCE)
        count = 1 + self._bucket.take(room - 1) if room else 0
        done = chain.write(os.getrandom(count))
        self._requests += 1
        self._bytes += done
        return done

    def stats(self) -> dict[str, int]:
        return {
            "requests": self._requests,
            "bytes": self._bytes,
            "throttled": self._throttled,
        }

    def limit(self, limits: dict[str, str]) -> None:
        self._bucket = _bucket(limits)


def _bucket(options: dict[str, str]) -> TokenBucket:
    text = options.get("rate", f"{DEFAULT_RATE}")
    try:
        rate = int(text)
    except ValueError:
        rate = -1
    if rate < 0:
        raise BadInput(f"rate={text!r} is no number of bytes a second")
    return TokenBucket(rate, max(rate, AT_ONCE))
