"""The numbers and records of vhost-user, as QEMU's docs/interop/vhost-user.rst has them.

A message is a header (request, flags, size) and a payload; all in the machine's own byte order.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# ---- requests of the front end

GET_FEATURES: Final = 1
SET_FEATURES: Final = 2
SET_OWNER: Final = 3
RESET_OWNER: Final = 4
SET_MEM_TABLE: Final = 5
SET_LOG_BASE: Final = 6
SET_LOG_FD: Final = 7
SET_VRING_NUM: Final = 8
SET_VRING_ADDR: Final = 9
SET_VRING_BASE: Final = 10
GET_VRING_BASE: Final = 11
SET_VRING_KICK: Final = 12
SET_VRING_CALL: Final = 13
SET_VRING_ERR: Final = 14
GET_PROTOCOL_FEATURES: Final = 15
SET_PROTOCOL_FEATURES: Final = 16
GET_QUEUE_NUM: Final = 17
SET_VRING_ENABLE: Final = 18
NET_SET_MTU: Final = 20
SET_BACKEND_REQ_FD: Final = 21
GET_CONFIG: Final = 24
SET_CONFIG: Final = 25
GET_INFLIGHT_FD: Final = 31
SET_INFLIGHT_FD: Final = 32
RESET_DEVICE: Final = 34
GET_MAX_MEM_SLOTS: Final = 36
ADD_MEM_REG: Final = 37
REM_MEM_REG: Final = 38
SET_STATUS: Final = 39
GET_STATUS: Final = 40

# ---- requests of the back end, on a socket of their own

BACKEND_CONFIG_CHANGE: Final = 2

# ---- flags of the header

VERSION: Final = 1
VERSION_MASK: Final = 3
REPLY: Final = 1 << 2
NEED_REPLY: Final = 1 << 3

# ---- protocol features

PF_MQ: Final = 1 << 0
PF_LOG_SHMFD: Final = 1 << 1
PF_REPLY_ACK: Final = 1 << 3
PF_NET_MTU: Final = 1 << 4
PF_BACKEND_REQ: Final = 1 << 5
PF_CONFIG: Final = 1 << 9
PF_INFLIGHT_SHMFD: Final = 1 << 12
PF_RESET_DEVICE: Final = 1 << 13
PF_CONFIGURE_MEM_SLOTS: Final = 1 << 15
PF_STATUS: Final = 1 << 16

# What every back end of ours can do, whatever its device.
PF_COMMON: Final = PF_MQ | PF_REPLY_ACK | PF_BACKEND_REQ | PF_RESET_DEVICE | PF_CONFIGURE_MEM_SLOTS
# What the code here can speak at all.
PF_KNOWN: Final = PF_COMMON | PF_LOG_SHMFD | PF_NET_MTU | PF_CONFIG | PF_INFLIGHT_SHMFD | PF_STATUS
# What a front end may take without being bound to more than it says anyway.
PF_UNASKED: Final = PF_KNOWN & ~PF_STATUS

# ---- feature bits that are vhost's own, among the virtio ones

F_LOG_ALL: Final = 1 << 26
F_PROTOCOL_FEATURES: Final = 1 << 30

# ---- flags in payloads

VRING_INDEX_MASK: Final = 0xFF
VRING_NO_FD: Final = 1 << 8
VRING_LOG: Final = 1  # in the flags of a ring's addresses: writes of the used ring are logged

# ---- limits

PAYLOAD_MAX: Final = 4096
FDS_MAX: Final = 8
REGIONS_MAX: Final = 8  # in one memory table
SLOTS_MAX: Final = 64  # by ADD_MEM_REG
CONFIG_MAX: Final = 256
RING_MAX: Final = 32768
QUEUES_MAX: Final = 256

# ---- records

HEADER: Final = struct.Struct("=III")  # request, flags, size
U64: Final = struct.Struct("=Q")
STATE: Final = struct.Struct("=II")  # ring, number
ADDRESSES: Final = struct.Struct("=IIQQQQ")  # ring, flags, descriptors, used, available, log
TABLE: Final = struct.Struct("=II")  # regions, padding; the regions follow
REGION: Final = struct.Struct("=QQQQ")  # guest address, size, user address, offset in the file
ONE_REGION: Final = struct.Struct("=QQQQQ")  # padding, then a region
LOG: Final = struct.Struct("=QQ")  # size, offset
CONFIG: Final = struct.Struct("=III")  # offset, size, flags; the bytes follow
INFLIGHT: Final = struct.Struct("=QQHH4x")  # size, offset, queues, ring size
INFLIGHT_SHORT: Final = struct.Struct("=QQHH")  # the same, as those send it who pack it

CONFIG_MIGRATION: Final = 1  # flag of SET_CONFIG: read-only fields are written too

# ---- the log of requests in flight: of each queue a header, and an entry for each descriptor

INFLIGHT_HEADER_SIZE: Final = 16
INFLIGHT_ENTRY_SIZE: Final = 16
INFLIGHT_ALIGNMENT: Final = 64


def inflight_queue_size(ring_size: int) -> int:
    """Return the bytes that one queue takes in the log of requests in flight."""
    size = INFLIGHT_HEADER_SIZE + INFLIGHT_ENTRY_SIZE * ring_size
    return (size + INFLIGHT_ALIGNMENT - 1) & -INFLIGHT_ALIGNMENT


class Message:
    """One message; whoever takes it owns its descriptors."""

    __slots__ = ("fds", "flags", "payload", "request")

    def __init__(self, request: int, flags: int, payload: bytes, fds: list[int]) -> None:
        self.request = request
        self.flags = flags
        self.payload = payload
        self.fds = fds

    @property
    def needs_reply(self) -> bool:
        """Whether the sender wants to be told how it went."""
        return bool(self.flags & NEED_REPLY)
