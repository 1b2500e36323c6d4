"""Interfaces of the host, by the old ioctls: quick to import, and all that a tap needs.

Numbers are linux/sockios.h's.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import struct

from kvmpv.errors import BadInput, HostError
from kvmpv.hostnet import netlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

SIOCGIFFLAGS: Final = 0x8913
SIOCSIFFLAGS: Final = 0x8914
SIOCSIFMTU: Final = 0x8922
SIOCSIFHWADDR: Final = 0x8924
SIOCSIFADDR: Final = 0x8916
SIOCSIFNETMASK: Final = 0x891C
SIOCBRADDBR: Final = 0x89A0
SIOCBRDELBR: Final = 0x89A1
SIOCBRADDIF: Final = 0x89A2
IFF_UP: Final = 1
ARPHRD_ETHER: Final = 1


def exists(name: str) -> bool:
    """Tell whether there is an interface of that name."""
    return netlink.find(name) is not None


def require_bridge(name: str) -> None:
    """Raise ``BadInput`` unless there is a bridge of that name."""
    found = netlink.find(name)
    if found is None:
        hint = f"make it: ip link add {name} type bridge; or use --net nat"
        raise BadInput(f"there is no bridge {name}", hint=hint)
    if found.kind != "bridge":
        hint = "give a bridge of Linux's own, or use --net nat"
        raise BadInput(f"the interface {name} is no bridge", hint=hint)


def mtu(name: str) -> int:
    """Return an interface's MTU; raise ``HostError`` when it is gone."""
    return _require(name).mtu


def _require(name: str) -> netlink.Link:
    found = netlink.find(name)
    if found is None:
        raise HostError(f"the interface {name} is gone")
    return found


def set_mtu(name: str, size: int) -> None:
    """Set an interface's MTU in bytes."""
    _ioctl(name, SIOCSIFMTU, struct.pack("i", size), f"set the MTU of {name} to {size}")


def set_mac(name: str, mac: str) -> None:
    """Set an interface's own MAC address."""
    address = struct.pack("H", ARPHRD_ETHER) + bytes.fromhex(mac.replace(":", ""))
    _ioctl(name, SIOCSIFHWADDR, address, f"set the MAC address of {name}")


def set_up(name: str) -> None:
    """Switch an interface on."""
    _change_flags(name, on=IFF_UP, what=f"switch {name} on")


def _change_flags(name: str, what: str, *, on: int = 0, off: int = 0) -> None:
    flags = struct.unpack_from("H", _ioctl(name, SIOCGIFFLAGS, b"", what), 16)[0]
    _ioctl(name, SIOCSIFFLAGS, struct.pack("H", flags & ~off | on), what)


def add_port(bridge: str, port: str) -> None:
    """Make an interface a port of a bridge."""
    index = struct.pack("i", _require(port).index)
    _ioctl(bridge, SIOCBRADDIF, index, f"put {port} into the bridge {bridge}")


def make_bridge(name: str) -> bool:
    """Make a bridge; return False when there is an interface of that name already."""
    try:
        _control(_socket.AF_INET, SIOCBRADDBR, struct.pack("16s", name.encode()), "make bridges")
    except HostError:
        if exists(name):
            return False
        raise
    return True


def remove_bridge(name: str) -> None:
    """Remove a bridge, whatever its ports; one that is gone already is no error."""
    if exists(name):
        what = f"remove the bridge {name}"
        _change_flags(name, what, off=IFF_UP)
        _control(_socket.AF_INET, SIOCBRDELBR, struct.pack("16s", name.encode()), what)


def set_ipv4(name: str, address: str, prefix: int) -> None:
    """Set an interface's IPv4 address; while it is off, no route is made in between."""
    what = f"give {name} the address {address}"
    for request, value in (
        (SIOCSIFADDR, _socket.inet_aton(address)),
        (SIOCSIFNETMASK, ((0xFFFFFFFF << (32 - prefix)) & 0xFFFFFFFF).to_bytes(4, "big")),
    ):
        _ioctl(name, request, struct.pack("=HH4s", _socket.AF_INET, 0, value), what)


def add_ipv6(name: str, address: str, prefix: int) -> None:
    """Give an interface an IPv6 address; one that it has already is no error."""
    index = _require(name).index
    value = _socket.inet_pton(_socket.AF_INET6, address) + struct.pack("=Ii", prefix, index)
    try:
        _control(_socket.AF_INET6, SIOCSIFADDR, value, f"give {name} the address {address}")
    except HostError:
        if address not in ipv6_addresses(name):
            raise


def ipv6_addresses(name: str) -> list[str]:
    """List the IPv6 addresses of an interface."""
    found = []
    try:
        with open("/proc/thread-self/net/if_inet6") as file:
            for line in file:
                digits, *_, interface = line.split()
                if interface == name:
                    packed = bytes.fromhex(digits)
                    found.append(_socket.inet_ntop(_socket.AF_INET6, packed))
    except FileNotFoundError:
        pass
    return found


def no_addresses(name: str) -> None:
    """Keep the host from giving an interface IPv6 addresses of its own."""
    try:
        with open(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "w") as file:
            file.write("1")
    except OSError:
        pass  # a host without IPv6, or one whose /proc is read-only: nothing is lost


def _ioctl(name: str, request: int, argument: bytes, what: str) -> bytes:
    return _control(_socket.AF_INET, request, struct.pack("16s24s", name.encode(), argument), what)


def _control(family: int, request: int, argument: bytes, what: str) -> bytes:
    control = _socket.socket(family, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        return fcntl.ioctl(control.fileno(), request, argument)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES):
            hint = "run it as root, or use --net user"
            raise HostError(f"this user has no right to {what}", hint=hint) from None
        raise HostError(f"cannot {what}: {error.strerror}") from None
    finally:
        control.close()
