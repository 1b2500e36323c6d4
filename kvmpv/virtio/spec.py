"""The numbers and config layouts of virtio 1.2, and of vhost-user where it adds a feature bit.

Section numbers are those of the OASIS specification "Virtual I/O Device (VIRTIO) Version 1.2".
"""

from __future__ import annotations

from struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# Device ids (5)
NET: Final = 1
BLK: Final = 2
RNG: Final = 4
VSOCK: Final = 19
FS: Final = 26

KINDS: Final = {"net": NET, "blk": BLK, "rng": RNG, "vsock": VSOCK, "fs": FS}

# Device status (2.1)
ACKNOWLEDGE: Final = 1
DRIVER: Final = 2
DRIVER_OK: Final = 4
FEATURES_OK: Final = 8
NEEDS_RESET: Final = 64
FAILED: Final = 128

# Reserved feature bits (6)
F_NOTIFY_ON_EMPTY: Final = 24  # legacy
F_ANY_LAYOUT: Final = 27  # legacy
F_INDIRECT_DESC: Final = 28
F_EVENT_IDX: Final = 29
F_VERSION_1: Final = 32
F_ACCESS_PLATFORM: Final = 33
F_RING_PACKED: Final = 34
F_IN_ORDER: Final = 35
F_ORDER_PLATFORM: Final = 36
F_SR_IOV: Final = 37
F_NOTIFICATION_DATA: Final = 38
F_NOTIF_CONFIG_DATA: Final = 39
F_RING_RESET: Final = 40

# vhost's own feature bits; never offered to a driver
VHOST_F_LOG_ALL: Final = 26
VHOST_USER_F_PROTOCOL_FEATURES: Final = 30

# Split ring (2.7)
DESC: Final = Struct("<QIHH")  # address, length, flags, next
USED_ELEM: Final = Struct("<II")  # id, length
DESC_F_NEXT: Final = 1
DESC_F_WRITE: Final = 2
DESC_F_INDIRECT: Final = 4
AVAIL_F_NO_INTERRUPT: Final = 1
USED_F_NO_NOTIFY: Final = 1
RING_SIZE_MAX: Final = 32768
DESC_ALIGN: Final = 16
AVAIL_ALIGN: Final = 2
USED_ALIGN: Final = 4


def desc_bytes(size: int) -> int:
    """Return how many bytes the descriptor table of a ring of ``size`` entries takes."""
    return 16 * size


def avail_bytes(size: int) -> int:
    """Return how many bytes the available ring takes, used_event included."""
    return 6 + 2 * size


def used_bytes(size: int) -> int:
    """Return how many bytes the used ring takes, avail_event included."""
    return 6 + 8 * size


# Network device (5.1)
NET_F_CSUM: Final = 0
NET_F_GUEST_CSUM: Final = 1
NET_F_CTRL_GUEST_OFFLOADS: Final = 2
NET_F_MTU: Final = 3
NET_F_MAC: Final = 5
NET_F_GUEST_TSO4: Final = 7
NET_F_GUEST_TSO6: Final = 8
NET_F_GUEST_ECN: Final = 9
NET_F_GUEST_UFO: Final = 10
NET_F_HOST_TSO4: Final = 11
NET_F_HOST_TSO6: Final = 12
NET_F_HOST_ECN: Final = 13
NET_F_HOST_UFO: Final = 14
NET_F_MRG_RXBUF: Final = 15
NET_F_STATUS: Final = 16
NET_F_CTRL_VQ: Final = 17
NET_F_CTRL_RX: Final = 18
NET_F_CTRL_VLAN: Final = 19
NET_F_CTRL_RX_EXTRA: Final = 20
NET_F_GUEST_ANNOUNCE: Final = 21
NET_F_MQ: Final = 22
NET_F_CTRL_MAC_ADDR: Final = 23
NET_F_GUEST_USO4: Final = 54
NET_F_GUEST_USO6: Final = 55
NET_F_HOST_USO: Final = 56
NET_F_HASH_REPORT: Final = 57
NET_F_GUEST_HDRLEN: Final = 59
NET_F_RSS: Final = 60
NET_F_RSC_EXT: Final = 61
NET_F_STANDBY: Final = 62
NET_F_SPEED_DUPLEX: Final = 63

# mac, status, max_virtqueue_pairs, mtu (5.1.4)
NET_CONFIG: Final = Struct("<6sHHH")
NET_S_LINK_UP: Final = 1
NET_S_ANNOUNCE: Final = 2

# flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers (5.1.6)
NET_HDR: Final = Struct("<BBHHHHH")
NET_HDR_F_NEEDS_CSUM: Final = 1
NET_HDR_F_DATA_VALID: Final = 2
NET_HDR_GSO_NONE: Final = 0
NET_HDR_GSO_TCPV4: Final = 1
NET_HDR_GSO_UDP: Final = 3
NET_HDR_GSO_TCPV6: Final = 4
NET_HDR_GSO_ECN: Final = 0x80

# Control queue (5.1.6.5): class, command
NET_OK: Final = 0
NET_ERR: Final = 1
NET_CTRL_RX: Final = 0
NET_CTRL_RX_PROMISC: Final = 0
NET_CTRL_RX_ALLMULTI: Final = 1
NET_CTRL_RX_NOBCAST: Final = 5
NET_CTRL_MAC: Final = 1
NET_CTRL_MAC_TABLE_SET: Final = 0
NET_CTRL_MAC_ADDR_SET: Final = 1
NET_CTRL_VLAN: Final = 2
NET_CTRL_ANNOUNCE: Final = 3
NET_CTRL_ANNOUNCE_ACK: Final = 0
NET_CTRL_MQ: Final = 4
NET_CTRL_MQ_VQ_PAIRS_SET: Final = 0
NET_CTRL_GUEST_OFFLOADS: Final = 5
NET_CTRL_GUEST_OFFLOADS_SET: Final = 0

# Block device (5.2)
BLK_F_SIZE_MAX: Final = 1
BLK_F_SEG_MAX: Final = 2
BLK_F_GEOMETRY: Final = 4
BLK_F_RO: Final = 5
BLK_F_BLK_SIZE: Final = 6
BLK_F_FLUSH: Final = 9
BLK_F_TOPOLOGY: Final = 10
BLK_F_CONFIG_WCE: Final = 11
BLK_F_MQ: Final = 12
BLK_F_DISCARD: Final = 13
BLK_F_WRITE_ZEROES: Final = 14
BLK_F_LIFETIME: Final = 15
BLK_F_SECURE_ERASE: Final = 16

# capacity, size_max, seg_max; cylinders, heads, sectors; blk_size; physical_block_exp,
# alignment_offset, min_io_size, opt_io_size; writeback, unused, num_queues;
# max_discard_sectors, max_discard_seg, discard_sector_alignment; max_write_zeroes_sectors,
# max_write_zeroes_seg, write_zeroes_may_unmap, 3 unused (5.2.4)
BLK_CONFIG: Final = Struct("<QIIHBBIBBHIBBHIIIIIB3x")
BLK_CONFIG_WCE_OFFSET: Final = 32
BLK_CONFIG_QUEUES_OFFSET: Final = 34

BLK_HDR: Final = Struct("<IIQ")  # type, reserved, sector (5.2.6)
BLK_DISCARD_SEGMENT: Final = Struct("<QII")  # sector, num_sectors, flags
BLK_T_IN: Final = 0
BLK_T_OUT: Final = 1
BLK_T_FLUSH: Final = 4
BLK_T_GET_ID: Final = 8
BLK_T_DISCARD: Final = 11
BLK_T_WRITE_ZEROES: Final = 13
BLK_ID_BYTES: Final = 20
BLK_S_OK: Final = 0
BLK_S_IOERR: Final = 1
BLK_S_UNSUPP: Final = 2
SECTOR: Final = 512

# Socket device (5.10)
VSOCK_CONFIG: Final = Struct("<Q")  # guest_cid
VSOCK_F_STREAM: Final = 0
VSOCK_F_SEQPACKET: Final = 1
# src_cid, dst_cid, src_port, dst_port, len, type, op, flags, buf_alloc, fwd_cnt (5.10.6)
VSOCK_HDR: Final = Struct("<QQIIIHHIII")

# File system device (5.11)
FS_CONFIG: Final = Struct("<36sI")  # tag, num_request_queues
FS_TAG_BYTES: Final = 36
FS_F_NOTIFICATION: Final = 0


def bit(feature: int) -> int:
    """Return the mask of a feature bit."""
    return 1 << feature


def mask(*features: int) -> int:
    """Return the mask of several feature bits."""
    return sum(1 << feature for feature in set(features))
