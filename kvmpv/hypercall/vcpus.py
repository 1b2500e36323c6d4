"""vCPU up and down."""

from __future__ import annotations

from kvmpv import abi
from kvmpv.hypercall.buffers import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from kvmpv.memory import GuestMemory

CR0_PE: Final = 1 << 0
CR0_PG: Final = 1 << 31
CR4_PAE: Final = 1 << 5
EFER_LME: Final = 1 << 8
EFER_LMA: Final = 1 << 10


class Vcpus:
    """Bring-up by hypercall. ``up`` and ``down`` act on the machine and return 0 or an errno."""

    __slots__ = ("_down", "_memory", "_up")

    def __init__(
        self,
        memory: GuestMemory,
        up: Callable[[int, abi.VcpuStart], int],
        down: Callable[[int], int | None],
    ) -> None:
        self._memory = memory
        self._up = up
        self._down = down

    def up(self, _cpu: int, apic_id: int, address: int, *_: int) -> int:
        """KVMPV_HC_VCPU_UP."""
        found = record(self._memory, address, abi.VCPU_START_VERSION, abi.VCPU_START)
        if isinstance(found, int):
            return found
        start = abi.unpack_vcpu_start(bytes(found))
        paging = CR0_PE | CR0_PG
        long_mode = EFER_LME | EFER_LMA
        if start.cr0 & paging != paging or start.efer & long_mode != long_mode:
            return -abi.EINVAL
        if not start.cr4 & CR4_PAE:
            return -abi.EINVAL
        return self._up(apic_id, start)

    def down(self, cpu: int, *_: int) -> int | None:
        """KVMPV_HC_VCPU_DOWN."""
        return self._down(cpu)
