"""The kernel's vhost-net: packets between a tap and the guest's memory without us.

A descriptor of /dev/vhost-net serves one pair of queues, in the address space of who opened it:
that is the worker, which has the guest's memory mapped. Numbers are linux/vhost.h's.
"""

from __future__ import annotations

import fcntl
import os
import struct

from kvmpv.dataplane.ring import view
from kvmpv.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

    from kvmpv.vhostuser.device import Vring

DEVICE: Final = "/dev/vhost-net"

GET_FEATURES: Final = 0x8008AF00
SET_FEATURES: Final = 0x4008AF00
SET_OWNER: Final = 0xAF01
SET_MEM_TABLE: Final = 0x4008AF03
SET_VRING_NUM: Final = 0x4008AF10
SET_VRING_ADDR: Final = 0x4028AF11
SET_VRING_BASE: Final = 0x4008AF12
GET_VRING_BASE: Final = 0xC008AF12
SET_VRING_KICK: Final = 0x4008AF20
SET_VRING_CALL: Final = 0x4008AF21
SET_VRING_ERR: Final = 0x4008AF22
NET_SET_BACKEND: Final = 0x4008AF30

STATE: Final = struct.Struct("=II")  # struct vhost_vring_state, and _file with a signed number
FILE: Final = struct.Struct("=Ii")
ADDRESSES: Final = struct.Struct("=IIQQQQ")
TABLE: Final = struct.Struct("=II")
REGION: Final = struct.Struct("=QQQQ")
USED_INDEX: Final = 2
NO_BACKEND: Final = -1


def available() -> bool:
    """Tell whether this process can have the kernel carry packets."""
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


class Pair:
    """One pair of queues in the kernel: 0 receives, 1 transmits. Raises ``HostError``."""

    __slots__ = ("_fd", "_tap")

    def __init__(self, tap: int) -> None:
        self._tap = tap
        try:
            self._fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            hint = "modprobe vhost_net, or leave vhost=on out"
            raise HostError(f"cannot open {DEVICE}: {error.strerror}", hint=hint) from None
        self._call(SET_OWNER, 0)

    def _call(self, request: int, argument: int | bytes | bytearray) -> int | bytes:
        try:
            return fcntl.ioctl(self._fd, request, argument)
        except OSError as error:
            number = request & 0xFF
            raise HostError(f"vhost-net refuses request {number:#x}: {error.strerror}") from None

    @property
    def features(self) -> int:
        """What the kernel offers, of the rings and of mergeable buffers."""
        answer = bytearray(8)
        self._call(GET_FEATURES, answer)
        return int.from_bytes(answer, "little")

    def set_features(self, features: int) -> None:
        """Take what the driver accepted, as far as the kernel knows it."""
        self._call(SET_FEATURES, struct.pack("=Q", features & self.features))

    def set_memory(self, regions: Iterable[tuple[int, int, int]]) -> None:
        """Take the guest's memory: (guest address, size, our address)."""
        records = [REGION.pack(gpa, size, address, 0) for gpa, size, address in regions]
        self._call(SET_MEM_TABLE, TABLE.pack(len(records), 0) + b"".join(records))

    def start(self, index: int, vring: Vring, base: int) -> None:
        """Serve queue ``index`` of the pair from ``base`` on; below 0: from where it was used."""
        if base < 0:
            base = int.from_bytes(view(vring.used + USED_INDEX, 2), "little")
        self._call(SET_VRING_NUM, STATE.pack(index, vring.num))
        self._call(SET_VRING_BASE, STATE.pack(index, base))
        addresses = (vring.desc, vring.used, vring.avail, 0)
        self._call(SET_VRING_ADDR, ADDRESSES.pack(index, 0, *addresses))
        self._call(SET_VRING_CALL, FILE.pack(index, vring.call))
        self._call(SET_VRING_ERR, FILE.pack(index, vring.err))
        self._call(SET_VRING_KICK, FILE.pack(index, vring.kick))
        self._call(NET_SET_BACKEND, FILE.pack(index, self._tap))

    def stop(self, index: int) -> int:
        """Serve it no more; return the index of the next available entry."""
        self._call(NET_SET_BACKEND, FILE.pack(index, NO_BACKEND))
        answer = bytearray(STATE.pack(index, 0))
        self._call(GET_VRING_BASE, answer)
        base: int = STATE.unpack(answer)[1]
        return base

    def close(self) -> None:
        """End it; what it served is stopped."""
        os.close(self._fd)
