"""Addresses: which networks the host uses, and which of the private ones a NAT network takes."""

from __future__ import annotations

import _socket
from _blake2 import blake2s

from kvmpv.errors import BadInput, HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

PREFIX_MIN: Final = 16
PREFIX_MAX: Final = 29


class Subnet:
    """An IPv4 network: its first address as a number, and the length of its prefix."""

    __slots__ = ("first", "prefix")

    def __init__(self, first: int, prefix: int) -> None:
        self.first = first
        self.prefix = prefix

    @property
    def size(self) -> int:
        """How many addresses it has, network and broadcast among them."""
        return 1 << (32 - self.prefix)

    def address(self, number: int) -> str:
        """Return its address of that number, from 0 on."""
        return _socket.inet_ntoa((self.first + number).to_bytes(4, "big"))

    def overlaps(self, other: Subnet) -> bool:
        """Tell whether any address is in both."""
        return self.first < other.first + other.size and other.first < self.first + self.size

    def __str__(self) -> str:
        return f"{self.address(0)}/{self.prefix}"


def parse(text: str) -> Subnet:
    """Return what ``10.1.2.0/24`` means; raise ``BadInput`` for what a NAT network cannot use."""
    hint = f"such as 192.168.77.0/24, a prefix of {PREFIX_MIN} to {PREFIX_MAX}"
    address, _, length = text.partition("/")
    try:
        first = int.from_bytes(_socket.inet_pton(_socket.AF_INET, address), "big")
    except OSError:
        raise BadInput(f"{text!r} is no IPv4 network", hint=hint) from None
    if not (length.isascii() and length.isdigit() and PREFIX_MIN <= int(length) <= PREFIX_MAX):
        raise BadInput(f"{text!r} has no prefix that serves", hint=hint)
    found = Subnet(first, int(length))
    if first % found.size:
        raise BadInput(f"{text} has host bits set", hint=hint)
    if not any(found.overlaps(private) for private in PRIVATE):
        raise BadInput(f"{text} is no private network", hint="in 10/8, 172.16/12 or 192.168/16")
    return found


PRIVATE: Final = (Subnet(10 << 24, 8), Subnet(0xAC100000, 12), Subnet(0xC0A80000, 16))


def routes() -> Iterator[tuple[Subnet, str]]:
    """List the networks that this host has routes to, with the interface; no default routes."""
    try:
        with open("/proc/thread-self/net/route") as file:
            next(file, None)
            for line in file:
                interface, first, *rest = line.split()
                mask = _host_order(rest[5])
                if mask:
                    yield Subnet(_host_order(first), mask.bit_count()), interface
    except FileNotFoundError:
        pass


def _own_addresses() -> Iterator[int]:
    """List the host's own addresses: one on the loopback interface has no other route."""
    try:
        with open("/proc/thread-self/net/fib_trie") as file:
            text = ""
            for line in file:
                first, _, rest = line.strip().partition(" ")
                if first == "|--":
                    text = rest
                elif line.strip() == "/32 host LOCAL":
                    yield int.from_bytes(_socket.inet_aton(text), "big")
    except FileNotFoundError:
        pass


def _host_order(digits: str) -> int:
    return int.from_bytes(bytes.fromhex(digits)[::-1], "big")


def in_use(wanted: Subnet) -> str:
    """Say by what a network, or a part of it, is used; "" for nothing."""
    for used, interface in routes():
        if used.overlaps(wanted):
            return interface
    own = any(wanted.overlaps(Subnet(address, 32)) for address in _own_addresses())
    return "this host" if own else ""


def choose() -> Subnet:
    """Return a private network that this host does not use."""
    for wanted in _candidates():
        if not in_use(wanted):
            return wanted
    raise HostError("no private network is free on this host", hint="give --net nat,subnet=...")


def _candidates() -> Iterator[Subnet]:
    for third in range(190, 240):
        yield Subnet(0xC0A80000 + (third << 8), 24)
    for second in range(140, 250):
        yield Subnet((10 << 24) + (second << 16), 24)


def local_prefix(bridge: str) -> str:
    """Return the /64 of unique local addresses of a bridge of this host (RFC 4193), without ``::``.

    The same for as long as the host keeps its machine id.
    """
    try:
        with open("/etc/machine-id", "rb") as file:
            host = file.read().strip()
    except OSError:
        host = _socket.gethostname().encode()
    digits = blake2s(b"kvmpv nat " + host + b" " + bridge.encode(), digest_size=7).hexdigest()
    return f"fd{digits[:2]}:{digits[2:6]}:{digits[6:10]}:{digits[10:14]}"


def eui64(prefix: str, mac: str) -> str:
    """Return the address that a card with this MAC gives itself (RFC 4291, appendix A)."""
    parts = [int(part, 16) for part in mac.split(":")]
    parts[0] ^= 2
    interface = bytes([*parts[:3], 0xFF, 0xFE, *parts[3:]])
    first = _socket.inet_pton(_socket.AF_INET6, f"{prefix}::")[:8]
    return _socket.inet_ntop(_socket.AF_INET6, first + interface)


def has_ipv6_default() -> bool:
    """Tell whether this host has an IPv6 default route to offer."""
    try:
        with open("/proc/thread-self/net/ipv6_route") as file:
            return any(
                line.startswith("0" * 32 + " 00 ") and not line.rstrip().endswith(" lo")
                for line in file
            )
    except FileNotFoundError:
        return False
