"""Taps: make one, open one, set its offloads. Nothing here needs more than a descriptor.

The kernel's documentation is Documentation/networking/tuntap.rst; numbers are linux/if_tun.h's.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from kvmpv.errors import BadInput, HostError
from kvmpv.hostnet import netlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from kvmpv.hostnet.netlink import Link

DEVICE: Final = "/dev/net/tun"
TEMPLATE: Final = "kvtap%d"  # the kernel puts the first number there that is free

TUNSETIFF: Final = 0x400454CA
TUNSETOFFLOAD: Final = 0x400454D0
TUNGETIFF: Final = 0x800454D2
TUNSETVNETHDRSZ: Final = 0x400454D8
TUNSETQUEUE: Final = 0x400454D9
TUNSETVNETLE: Final = 0x400454DC

IFF_TAP: Final = 0x0002
IFF_MULTI_QUEUE: Final = 0x0100
IFF_ATTACH_QUEUE: Final = 0x0200
IFF_DETACH_QUEUE: Final = 0x0400
IFF_NO_PI: Final = 0x1000
IFF_VNET_HDR: Final = 0x4000

TUN_F_CSUM: Final = 0x01
TUN_F_TSO4: Final = 0x02
TUN_F_TSO6: Final = 0x04
TUN_F_TSO_ECN: Final = 0x08
TUN_F_UFO: Final = 0x10
TUN_F_USO4: Final = 0x20  # since Linux 6.2
TUN_F_USO6: Final = 0x40

CAP_NET_ADMIN: Final = 12
VNET_HEADER: Final = 12  # struct virtio_net_hdr_v1, virtio 1.2 section 5.1.6

IFREQ: Final = struct.Struct("16sH22x")
NO_RIGHT: Final = "run it as root, have root make you a tap for --net tap=NAME, or use --net user"


def make(queues: int) -> tuple[str, list[int]]:
    """Make a tap with so many queues; return its name and a descriptor for each queue.

    It is gone when the last descriptor is closed. Raise ``HostError`` where this process has no
    right to make one, or the host has no taps.
    """
    return _open(TEMPLATE, queues, multi_queue=True)


def open_named(name: str, queues: int) -> list[int]:
    """Open queues of a tap that is there; return their descriptors.

    Raise ``BadInput`` where there is none of that name, it is no tap, it is another user's, it is
    in use, or it has one queue only and more are wanted.
    """
    return _open(name, queues, require(name, queues).multi_queue)[1]


def require_right() -> None:
    """Raise ``HostError`` where this process may make no taps."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("CapEff:"))
    if not int(line.split()[1], 16) >> CAP_NET_ADMIN & 1:
        raise HostError("this user has no right to make taps", hint=NO_RIGHT)


def require(name: str, queues: int) -> Link:
    """Return the tap of that name; raise ``BadInput`` where ``open_named`` would."""
    remedy = f"ip tuntap add dev {name} mode tap multi_queue vnet_hdr user USER"
    found = netlink.find(name)
    if found is None:
        raise BadInput(f"there is no tap {name}", hint=remedy)
    if not found.is_tap:
        raise BadInput(f"the interface {name} is no tap", hint=remedy)
    if found.owner not in (-1, os.geteuid()):
        hint = f"take one that user {os.geteuid()} owns"
        raise BadInput(f"the tap {name} belongs to user {found.owner}", hint=hint)
    if queues > 1 and not found.multi_queue:
        hint = f"ip tuntap add dev {name} mode tap multi_queue vnet_hdr"
        raise BadInput(f"the tap {name} was made with one queue only", hint=hint)
    return found


def _open(name: str, queues: int, multi_queue: bool) -> tuple[str, list[int]]:
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if multi_queue else 0)
    fds: list[int] = []
    try:
        for _ in range(queues):
            fd = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            fds.append(fd)
            request = bytearray(IFREQ.pack(name.encode(), flags))
            fcntl.ioctl(fd, TUNSETIFF, request)
            name = IFREQ.unpack(request)[0].rstrip(b"\0").decode()
            fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER))
    except OSError as error:
        for fd in fds:
            os.close(fd)
        raise _explained(name, error) from None
    return name, fds


def _explained(name: str, error: OSError) -> BadInput | HostError:
    own = name == TEMPLATE
    if error.errno in (errno.EPERM, errno.EACCES):
        if own:
            return HostError("this user has no right to make taps", hint=NO_RIGHT)
        return BadInput(f"this user has no right to the tap {name}", hint=NO_RIGHT)
    if error.errno == errno.EBUSY:
        return BadInput(f"the tap {name} is in use", hint="each tap serves one domain")
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return HostError(f"this host has no {DEVICE}", hint="modprobe tun")
    what = "make a tap" if own else f"open the tap {name}"
    return HostError(f"cannot {what}: {error.strerror}")


def name_of(fd: int) -> str:
    """Return the name of the tap that a descriptor is for; raise ``HostError`` if it is none."""
    request = bytearray(IFREQ.size)
    try:
        fcntl.ioctl(fd, TUNGETIFF, request)
    except OSError as error:
        raise HostError(f"descriptor {fd} is no tap: {error.strerror}") from None
    name: bytes = IFREQ.unpack(request)[0]
    return name.rstrip(b"\0").decode()


def has_queues(fd: int) -> bool:
    """Tell whether the tap behind a descriptor was made for several queues."""
    request = bytearray(IFREQ.size)
    fcntl.ioctl(fd, TUNGETIFF, request)
    flags: int = IFREQ.unpack(request)[1]
    return bool(flags & IFF_MULTI_QUEUE)


def set_offload(fd: int, flags: int) -> bool:
    """Tell the tap what its reader takes (TUN_F_*); say whether the kernel knows all of it."""
    try:
        fcntl.ioctl(fd, TUNSETOFFLOAD, flags)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise HostError(f"cannot set offloads of a tap: {error.strerror}") from None
    return True


def set_header(fd: int, size: int) -> None:
    """Set the length of the virtio-net header before each packet: 10 or 12 bytes."""
    fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", size))
    fcntl.ioctl(fd, TUNSETVNETLE, struct.pack("i", 1))  # virtio 1.x is little-endian


def set_queue(fd: int, attached: bool) -> None:
    """Let the kernel send packets to this queue of a tap, or no more."""
    flag = IFF_ATTACH_QUEUE if attached else IFF_DETACH_QUEUE
    try:
        fcntl.ioctl(fd, TUNSETQUEUE, IFREQ.pack(b"", flag))
    except OSError as error:
        if error.errno != errno.EINVAL:  # it is so already
            raise HostError(f"cannot switch a queue of a tap: {error.strerror}") from None
