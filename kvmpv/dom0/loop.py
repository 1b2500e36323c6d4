"""The one loop of a worker's main thread: descriptors that become ready, and moments that come."""

from __future__ import annotations

import select
import time

from kvmpv._rest import QUIET, rest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Loop:
    """Call whoever waits for a descriptor or a moment."""

    __slots__ = ("_epoll", "_ready", "_timers", "ending")

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._ready: dict[int, Callable[[int], None]] = {}
        self._timers: dict[Callable[[], None], int] = {}
        self.ending = False

    def watch(self, fd: int, ready: Callable[[int], None], events: int = select.EPOLLIN) -> None:
        """Call ``ready`` with the events whenever ``fd`` has one of them, or is hung up."""
        self._epoll.register(fd, events)
        self._ready[fd] = ready

    def rewatch(self, fd: int, events: int) -> None:
        """Wait for other events of a descriptor that is watched."""
        self._epoll.modify(fd, events)

    def unwatch(self, fd: int) -> None:
        """Watch a descriptor no more; it is still open."""
        if self._ready.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_at(self, moment_ns: int, action: Callable[[], None]) -> None:
        """Call ``action`` once ``time.monotonic_ns`` is there; a later call moves the moment."""
        self._timers[action] = moment_ns

    def forget(self, action: Callable[[], None]) -> None:
        """Do not make a call that ``call_at`` was asked for."""
        self._timers.pop(action, None)

    def run(self) -> None:
        """Go on until ``ending`` is set."""
        while not self.ending:
            self.turn()

    def turn(self) -> None:
        """Wait for something, once, and see to it."""
        timeout = QUIET
        if self._timers:
            timeout = max(min(self._timers.values()) - time.monotonic_ns(), 0) / 1e9
        found = self._epoll.poll(timeout)
        if not found and not self._timers:
            rest(self._epoll.fileno())
            found = self._epoll.poll(0)
        for fd, events in found:
            ready = self._ready.get(fd)
            if ready is not None:  # else it was given up by another one of this turn
                ready(events)
        if self._timers:
            now = time.monotonic_ns()
            for action, moment in list(self._timers.items()):
                if moment <= now and self._timers.pop(action, None) is not None:
                    action()
