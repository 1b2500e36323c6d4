"""Check the buffers that guests name."""

from __future__ import annotations

from kvmpv import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpv.memory import GuestMemory


def buffer(memory: GuestMemory, address: int, length: int) -> memoryview | int:
    """Return the buffer, or the negative errno that its address or length deserves."""
    if length > abi.MAX_BUFFER:
        return -abi.EMSGSIZE
    found = memory.slice(address, length)
    return -abi.EFAULT if found is None else found


def record(memory: GuestMemory, address: int, version: int, layout: abi.Layout) -> memoryview | int:
    """Return a guest's record, as far as this side knows it, or a negative errno."""
    head = memory.slice(address, 4)
    if head is None:
        return -abi.EFAULT
    # A copy: another vCPU may change the record while it is looked at.
    if not abi.record_is_valid(bytes(head), version, layout):
        return -abi.EINVAL
    found = memory.slice(address, layout.size)
    return -abi.EFAULT if found is None else found
