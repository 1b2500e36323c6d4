"""Write a line for every exit to user space: ``--trace``."""

from __future__ import annotations

import os
import time

from kvmpv.kvm import exits
from kvmpv.vmm.counters import CALLS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpv.hypercall.table import Handler
    from kvmpv.machine.processor import Processor


class Trace:
    """A trace into the file ``fd``: nanoseconds since the first entry, vCPU, what, result."""

    __slots__ = ("_fd", "_start")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._start = time.monotonic_ns()

    def handlers(self, table: dict[int, Handler]) -> dict[int, Handler]:
        """Return the table with every handler traced."""
        return {number: self._traced(number, handler) for number, handler in table.items()}

    def exit(self, processor: Processor) -> None:
        """Trace an exit that is no hypercall."""
        self._line(processor.index, exits.describe(processor.vcpu))

    def _traced(self, number: int, handler: Handler) -> Handler:
        def traced(cpu: int, *arguments: int) -> int | None:
            result = handler(cpu, *arguments)
            shown = ", ".join(f"{argument:#x}" for argument in arguments)
            self._line(cpu, f"{CALLS[number]}({shown}) = {result}")
            return result

        return traced

    def _line(self, cpu: int, text: str) -> None:
        try:
            os.write(self._fd, f"{time.monotonic_ns() - self._start} {cpu} {text}\n".encode())
        except OSError:
            pass  # a full disk ends the trace, not the guest
