"""The guest ABI in Python: the numbers and records of kvmpv.h, without the KVMPV_ prefix.

kvmpv.h is the master and says what each of them means; a test holds the two together. No I/O
here, and nothing that takes long to import: the VMM starts with it.
"""

from __future__ import annotations

from kvmpv.abi.layout import Layout as Layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

# Discovery
CPUID_BASE: Final = 0x40000100
SIGNATURE: Final = b"kvmpv:on:kvm"
SIGNATURE_EBX: Final = 0x706D766B
SIGNATURE_ECX: Final = 0x6E6F3A76
SIGNATURE_EDX: Final = 0x6D766B3A
CPUID_FEATURES: Final = 0x40000101
CPUID_START: Final = 0x40000102
CPUID_LAST: Final = 0x40000102

VERSION_MAJOR: Final = 1
VERSION_MINOR: Final = 1
VERSION: Final = VERSION_MAJOR << 16 | VERSION_MINOR  # as CPUID and HC_VERSION give it

FEATURE_PORTS: Final = 0x00000001
FEATURE_EVTCHN: Final = 0x00000002
FEATURE_REQUESTS: Final = 0x00000004
FEATURE_VCPU: Final = 0x00000008
FEATURE_VIRTIO: Final = 0x00000010
FEATURES: Final = FEATURE_PORTS | FEATURE_EVTCHN | FEATURE_REQUESTS | FEATURE_VCPU | FEATURE_VIRTIO

# The gate
GATE_PORT: Final = 1
GATE_VMCALL: Final = 2
GATE_VMMCALL: Final = 3
GATE_PORT_NUMBER: Final = 0x4B50  # this VMM's choice: guests read it from CPUID_FEATURES

MAX_BUFFER: Final = 65536

# Errors; calls return them negated
EPERM: Final = 1
ENOENT: Final = 2
EIO: Final = 5
EAGAIN: Final = 11
EFAULT: Final = 14
EBUSY: Final = 16
EINVAL: Final = 22
ENOSPC: Final = 28
EPIPE: Final = 32
ENOSYS: Final = 38
EMSGSIZE: Final = 90
ENOTCONN: Final = 107

# Calls
HC_VERSION: Final = 0x00
HC_FEATURES: Final = 0x01
HC_LOG: Final = 0x10
HC_PORT_WRITE: Final = 0x11
HC_PORT_READ: Final = 0x12
HC_PORT_BIND: Final = 0x13
HC_PORT_STATUS: Final = 0x14
HC_PORT_CLOSE: Final = 0x15
HC_EVTCHN_ALLOC: Final = 0x20
HC_EVTCHN_BIND: Final = 0x21
HC_EVTCHN_SEND: Final = 0x22
HC_EVTCHN_CLOSE: Final = 0x23
HC_REQUESTS_BIND: Final = 0x30
HC_REQUESTS_GET: Final = 0x31
HC_POWEROFF: Final = 0x40
HC_REBOOT: Final = 0x41
HC_CRASH: Final = 0x42
HC_YIELD: Final = 0x43
HC_VCPU_UP: Final = 0x50
HC_VCPU_DOWN: Final = 0x51
HC_VIRTIO_DEVICES: Final = 0x60
HC_VIRTIO_OPEN: Final = 0x61
HC_VIRTIO_STATUS: Final = 0x62
HC_VIRTIO_QUEUE: Final = 0x63
HC_VIRTIO_CONFIG: Final = 0x64
HC_VIRTIO_BIND: Final = 0x65
HC_VIRTIO_CLOSE: Final = 0x66

# Console ports
PORT_TERMINAL: Final = 0
PORT_EXEC: Final = 1
MAX_PORTS: Final = 2

PORT_READABLE: Final = 0x00000001
PORT_WRITABLE: Final = 0x00000002
PORT_EOF: Final = 0x00000004

PORT_STATUS_VERSION: Final = 1
PORT_STATUS: Final = Layout("version:H size:H flags:I columns:H rows:H reserved:I")

# Event channels
MAX_CHANNELS: Final = 1024
NO_CHANNEL: Final = 0xFFFFFFFF

EVTCHN_BIND_VERSION: Final = 1
EVTCHN_BIND: Final = Layout("version:H size:H count:H message_size:H")
EVTCHN_MESSAGE: Final = Layout("address:Q data:I channel:I")

# Requests
REQUEST_POWEROFF: Final = 0x00000001
REQUEST_REBOOT: Final = 0x00000002
REQUEST_SUSPEND: Final = 0x00000004
REQUEST_SYSRQ: Final = 0x00000008
REQUEST_VCPUS: Final = 0x00000010
REQUEST_DEVICES: Final = 0x00000020

REQUESTS_VERSION: Final = 1
REQUESTS: Final = Layout("version:H size:H pending:I sysrq:I reserved:I vcpus:32s")

# vCPUs
VCPU_START_VERSION: Final = 1
VCPU_START: Final = Layout(
    "version:H size:H reserved:I rip:Q rsp:Q rdi:Q rsi:Q cr0:Q cr3:Q cr4:Q efer:Q"
)

# Virtio devices
MAX_DEVICES: Final = 48
MAX_QUEUES: Final = 64
VIRTIO_CONFIG_MAX: Final = 256
DOORBELL_PORT: Final = 0x4C00  # of device 0, 4 more for each: this VMM's choice, see the page

VIRTIO_PAGE_VERSION: Final = 1
VIRTIO_PAGE: Final = Layout(
    "version:H size:H type:I features:Q doorbell:I queues:I status:I generation:I config_size:I"
    " removed:I ring_max:128s config:256s reserved:24s"
)
VIRTIO_QUEUE_VERSION: Final = 1
VIRTIO_QUEUE: Final = Layout(
    "version:H size:H index:H ring_size:H channel:I reserved:I descriptors:Q driver:Q device:Q"
)

# Start info
START_INFO_VERSION: Final = 1
MEMORY_RAM: Final = 1
MEMORY_RESERVED: Final = 2
MEMORY_RANGE: Final = Layout("address:Q length:Q type:I reserved:I")
START_INFO: Final = Layout(
    "version:H size:H flags:I tsc_khz:I timer_khz:I boot_vcpus:I max_vcpus:I apic_ids:Q memory:Q"
    " memory_count:I memory_size:I cmdline:Q cmdline_size:Q initrd:Q initrd_size:Q generation:Q"
    " instance:16s seed:32s hypervisor:32s"
)


class StartInfo:
    """Fill struct kvmpv_start_info: addresses are guest-physical, sizes in bytes."""

    __slots__ = START_INFO.fields[2:]

    if TYPE_CHECKING:
        flags: int
        tsc_khz: int
        timer_khz: int
        boot_vcpus: int
        max_vcpus: int
        apic_ids: int
        memory: int
        memory_count: int
        memory_size: int
        cmdline: int
        cmdline_size: int
        initrd: int
        initrd_size: int
        generation: int
        instance: bytes
        seed: bytes
        hypervisor: bytes

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, 0)
        self.memory_size = MEMORY_RANGE.size
        self.instance = self.seed = self.hypervisor = b""

    def pack(self) -> bytes:
        """Return the record; the version text is cut so that it ends in NUL."""
        self.hypervisor = self.hypervisor[:31]
        values = [getattr(self, name) for name in self.__slots__]
        return START_INFO.pack(START_INFO_VERSION, START_INFO.size, *values)


class VcpuStart:
    """Hold what struct kvmpv_vcpu_start asks for; made by unpack_vcpu_start."""

    __slots__ = VCPU_START.fields[3:]

    if TYPE_CHECKING:
        rip: int
        rsp: int
        rdi: int
        rsi: int
        cr0: int
        cr3: int
        cr4: int
        efer: int

    def __init__(self, values: Sequence[int]) -> None:
        for name, value in zip(self.__slots__, values, strict=True):
            setattr(self, name, value)


class VirtioQueue:
    """Hold what struct kvmpv_virtio_queue asks for; made by unpack_virtio_queue."""

    __slots__ = ("channel", "descriptors", "device", "driver", "index", "ring_size")

    def __init__(self, values: Sequence[int]) -> None:
        self.index, self.ring_size, self.channel, _ = values[:4]
        self.descriptors, self.driver, self.device = values[4:]


def pack_memory_map(ranges: Sequence[tuple[int, int, int]]) -> bytes:
    """Return struct kvmpv_memory_range[] for (address, length, type) each."""
    return b"".join(MEMORY_RANGE.pack(*each, 0) for each in ranges)


def pack_apic_ids(ids: Sequence[int]) -> bytes:
    """Return the table that start info's apic_ids points to."""
    return b"".join(each.to_bytes(4, "little") for each in ids)


def record_is_valid(data: bytes | bytearray | memoryview, version: int, layout: Layout) -> bool:
    """Tell whether a guest's record has this version and at least the size of version 1.0.

    data holds at least the four bytes that each record begins with.
    """
    return data[0] | data[1] << 8 == version and data[2] | data[3] << 8 >= layout.size


def pack_port_status(size: int, flags: int, columns: int, rows: int) -> bytes:
    """Return the answer to HC_PORT_STATUS; size is the one that the guest gave."""
    return PORT_STATUS.pack(PORT_STATUS_VERSION, size, flags, columns, rows, 0)


def pack_requests(size: int, pending: int, sysrq: int, vcpus: int) -> bytes:
    """Return the answer to HC_REQUESTS_GET; vcpus is the mask: bit N is APIC id N."""
    mask = (vcpus & (1 << 256) - 1).to_bytes(32, "little")
    return REQUESTS.pack(REQUESTS_VERSION, size, pending, sysrq, 0, mask)


def unpack_vcpu_start(data: bytes | bytearray | memoryview) -> VcpuStart:
    """Return what a valid struct kvmpv_vcpu_start asks for."""
    return VcpuStart(VCPU_START.unpack(data)[3:])


def pack_virtio_page(
    size: int,
    device_type: int,
    features: int,
    doorbell: int,
    ring_max: Sequence[int],
    status: int,
    generation: int,
    config: bytes,
    *,
    removed: bool = False,
) -> bytes:
    """Return the answer to HC_VIRTIO_OPEN, in full; size is the one that the guest gave.

    ring_max has one number for each queue. What is live is written later with ``poke_u32`` at the
    offsets of VIRTIO_PAGE.
    """
    table = b"".join(each.to_bytes(2, "little") for each in ring_max)
    head = VIRTIO_PAGE_VERSION, size, device_type, features, doorbell, len(ring_max)
    return VIRTIO_PAGE.pack(
        *head, status, generation, len(config), int(removed), table, config, b""
    )


def poke_u32(page: memoryview, field: str, value: int) -> None:
    """Write one live field of a struct kvmpv_virtio_page that a guest has open."""
    at = VIRTIO_PAGE.offset[field]
    page[at : at + 4].cast("I")[0] = value  # one store: a guest may be reading


def unpack_virtio_queue(data: bytes | bytearray | memoryview) -> VirtioQueue:
    """Return what a valid struct kvmpv_virtio_queue asks for."""
    return VirtioQueue(VIRTIO_QUEUE.unpack(data)[2:])


def unpack_evtchn_header(data: bytes | bytearray | memoryview) -> tuple[int, int, int] | None:
    """Return (size, count, message_size) of a struct kvmpv_evtchn_bind, None if it is invalid."""
    _, size, count, message_size = EVTCHN_BIND.unpack(data)
    if not record_is_valid(data, EVTCHN_BIND_VERSION, EVTCHN_BIND):
        return None
    if not 1 <= count <= MAX_CHANNELS or message_size < EVTCHN_MESSAGE.size:
        return None
    return size, count, message_size


def unpack_evtchn_messages(
    data: bytes | bytearray | memoryview, count: int, message_size: int
) -> list[tuple[int, int, int]]:
    """Return (address, data, channel) for each message; data begins with the first of them."""
    view = memoryview(data)
    starts = range(0, count * message_size, message_size)
    return [EVTCHN_MESSAGE.unpack(view[at:]) for at in starts]


def message_is_valid(address: int, data: int) -> bool:
    """Tell whether an event channel may have this MSI, as KVMPV_HC_EVTCHN_BIND says."""
    mode = data >> 8 & 7  # 0 fixed, 1 lowest priority
    return address >> 20 == 0xFEE and mode <= 1 and not data >> 15 & 1 and (data & 0xFF) >= 16
