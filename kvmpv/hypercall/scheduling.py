"""Scheduling: how a guest ends itself, and lets others run."""

from __future__ import annotations

import posix

from kvmpv.hypercall.buffers import buffer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from kvmpv.memory import GuestMemory

REASON_MAX: Final = 4096


class Scheduling:
    """The guest's ends. ``end(cpu, kind, message)`` ends or reboots the domain."""

    __slots__ = ("_end", "_memory")

    def __init__(self, memory: GuestMemory, end: Callable[[int, str, str], None]) -> None:
        self._memory = memory
        self._end = end

    def poweroff(self, cpu: int, *_: int) -> None:
        """KVMPV_HC_POWEROFF."""
        self._end(cpu, "poweroff", "the guest powered off")

    def reboot(self, cpu: int, *_: int) -> None:
        """KVMPV_HC_REBOOT."""
        self._end(cpu, "reboot", "the guest rebooted")

    def crash(self, cpu: int, address: int, length: int, *_: int) -> int | None:
        """KVMPV_HC_CRASH."""
        found = buffer(self._memory, address, length) if length else b""
        if isinstance(found, int):
            return found
        text = bytes(found[:REASON_MAX]).rstrip(b"\0\n").decode("utf-8", "replace")
        self._end(cpu, "crash", text or "the guest gave no reason")
        return None

    def yield_(self, _cpu: int, *_: int) -> int:
        """KVMPV_HC_YIELD."""
        posix.sched_yield()
        return 0
