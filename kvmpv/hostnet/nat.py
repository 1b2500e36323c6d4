"""The NAT network: a bridge with IPv4 and IPv6, its DHCP and DNS, its rules; made by its first
user and removed with its last.

What it consists of is written down before any of it is made, so that whoever comes after a crash
can make it whole, or take it away.
"""

from __future__ import annotations

import _socket
import errno
import os
from _blake2 import blake2s

from kvmpv.errors import BadInput, HostError
from kvmpv.hostnet import dnsmasq, links, nft, spec, subnet, sysctl, tap, tools, users

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from kvmpv.hostnet.spec import Forward, NetSpec

BRIDGES: Final = 100
MTU: Final = 1500
SOCKET_TYPES: Final = {"tcp": _socket.SOCK_STREAM, "udp": _socket.SOCK_DGRAM}


class Network:
    """A NAT network as its record says it; ``old`` are the kernel's settings to put back."""

    __slots__ = ("bridge", "folder", "mtu", "old", "prefix6", "subnet")

    def __init__(self, folder: str, bridge: str, range4: subnet.Subnet, prefix6: str) -> None:
        self.folder = folder
        self.bridge = bridge
        self.subnet = range4
        self.prefix6 = prefix6  # "" where the host has no IPv6
        self.mtu = MTU
        self.old: dict[str, str] = {}

    @property
    def address(self) -> str:
        """The host's own IPv4 address in it."""
        return self.subnet.address(1)

    @property
    def table(self) -> str:
        """The name of its table of rules."""
        return f"kvmpv_{self.bridge}"

    @property
    def server(self) -> dnsmasq.Server:
        """Its dnsmasq."""
        return dnsmasq.Server(self.folder)

    def address_for(self, user: users.User, path: str) -> str:
        """Return the address for a card: by its name, and the next one if another has that."""
        taken = {other["address"] for other in living(path) if other.file != user.file}
        room = self.subnet.size - 3  # not the network's, ours, the broadcast's
        digest = blake2s(user.file.encode(), digest_size=4).digest()
        start = int.from_bytes(digest, "big")
        for step in range(room):
            address = self.subnet.address(2 + (start + step) % room)
            if address not in taken:
                return address
        raise HostError(f"all addresses of {self.subnet} are given", hint="give a larger subnet=")

    def save(self) -> None:
        """Write the record, before what it says is made."""
        lines = [
            f"bridge={self.bridge}",
            f"subnet={self.subnet}",
            f"prefix6={self.prefix6}",
            f"mtu={self.mtu}",
            *(f"old {key}={value}" for key, value in self.old.items()),
        ]
        new = f"{self.folder}/{users.RECORD}.new"
        with open(new, "w") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write("".join(f"{line}\n" for line in lines))
        os.rename(new, f"{self.folder}/{users.RECORD}")


def load(path: str) -> Network | None:
    """Return the network that the folder ``path`` has a record of, or None."""
    try:
        with open(f"{path}/{users.RECORD}") as file:
            rows = dict(line.rstrip("\n").partition("=")[::2] for line in file)
        found = Network(path, rows["bridge"], subnet.parse(rows["subnet"]), rows["prefix6"])
        found.mtu = int(rows["mtu"])
    except FileNotFoundError:
        return None
    except (KeyError, ValueError, BadInput):
        raise HostError(
            f"{path}/{users.RECORD} is no record of ours", hint="remove that file"
        ) from None
    found.old = {key[4:]: value for key, value in rows.items() if key.startswith("old ")}
    return found


def living(path: str) -> list[users.User]:
    """List the cards in the NAT network whose users live."""
    return [user for user in users.living(path)[0] if user["kind"] == "nat"]


def require(wanted: NetSpec) -> None:
    """Raise ``BadInput`` or ``HostError`` where a card could not be attached; make nothing."""
    tap.require_right()
    tools.require("nft", nft.PACKAGE)
    tools.require("dnsmasq", dnsmasq.PACKAGE)
    _require_subnet(load(users.folder()), wanted)
    for port in hold_ports(wanted.forwards):
        port.close()


def _require_subnet(found: Network | None, wanted: NetSpec) -> None:
    if not wanted.subnet:
        return
    asked = subnet.parse(wanted.subnet)
    if found:
        if str(found.subnet) != str(asked):
            hint = "end its domains first, or leave subnet= out"
            raise BadInput(f"the NAT network has the subnet {found.subnet} by now", hint=hint)
        return
    if interface := subnet.in_use(asked):
        hint = "choose another, or leave subnet= out"
        raise BadInput(f"the subnet {asked} is in use on {interface}", hint=hint)


def ensure(path: str, wanted: NetSpec) -> Network:
    """Return the network of the folder ``path``, made if it is not, mended if it is half made."""
    for name, package in (("nft", nft.PACKAGE), ("dnsmasq", dnsmasq.PACKAGE)):
        tools.require(name, package)
    found = load(path)
    _require_subnet(found, wanted)
    if found is None:
        range4 = subnet.parse(wanted.subnet) if wanted.subnet else subnet.choose()
        found = _choose_bridge(path, range4)
        found.mtu = wanted.mtu or MTU
        found.old = sysctl.for_forwarding()
        found.save()
    if _make_bridge(found):
        for card in living(path):  # of a bridge that somebody has removed
            if card["tap"] and links.exists(card["tap"]):
                links.add_port(found.bridge, card["tap"])
    sysctl.forward(found.old)
    return found


def _choose_bridge(path: str, range4: subnet.Subnet) -> Network:
    for number in range(BRIDGES):
        name = f"kvmpv{number}"
        if not links.exists(name):
            prefix6 = subnet.local_prefix(name) if sysctl.new_ones_have_ipv6() else ""
            return Network(path, name, range4, prefix6)
    raise HostError(f"this host has {BRIDGES} bridges of ours", hint="ip link show type bridge")


def _make_bridge(network: Network) -> bool:
    """Make it, or what it lacks; say whether it was not there."""
    name = network.bridge
    if made := links.make_bridge(name):
        digest = blake2s(name.encode() + network.prefix6.encode(), digest_size=4).digest()
        links.set_mac(name, f"52:4b:{digest.hex(':')}")  # else it changes with its ports
        links.set_mtu(name, network.mtu)
        links.set_ipv4(name, network.address, network.subnet.prefix)
        if network.prefix6:
            # Nobody else can have these addresses, and dnsmasq wants to bind to them now.
            sysctl.put(f"net/ipv6/conf/{name}/accept_dad", "0")
            sysctl.put(f"net/ipv6/conf/{name}/accept_ra", "0")
    if network.prefix6 and sysctl.get(f"net/ipv6/conf/{name}/disable_ipv6") == "0":
        links.add_ipv6(name, f"{network.prefix6}::1", 64)
    sysctl.put(f"net/ipv4/conf/{name}/route_localnet", "1")  # forwards from 127.0.0.1
    links.set_up(name)
    return made


def _dnsmasq_settings(network: Network) -> list[str]:
    name, mtu = network.bridge, network.mtu
    lines = dnsmasq.settings(name, network.subnet.prefix, network.subnet.address(0), mtu)
    if network.prefix6:
        routes = subnet.has_ipv6_default()
        lines += dnsmasq.settings_ipv6(name, network.prefix6, mtu, routes=routes)
    return lines


def hold_ports(forwards: Sequence[Forward]) -> list[_socket.socket]:
    """Return sockets bound to the ports of the host that are forwarded: nobody else gets them.

    Raise ``BadInput`` where one is in use. Packets never reach these sockets: rules send them on.
    """
    held: list[_socket.socket] = []
    try:
        for forward in forwards:
            families = [(_socket.AF_INET, forward.host or "0.0.0.0")]
            if not forward.host and sysctl.has_ipv6():
                families.append((_socket.AF_INET6, "::"))
            for family, address in families:
                held.append(_hold(forward, family, address))
    except BaseException:
        for port in held:
            port.close()
        raise
    return held


def _hold(forward: Forward, family: int, address: str) -> _socket.socket:
    port = _socket.socket(family, SOCKET_TYPES[forward.protocol] | _socket.SOCK_CLOEXEC)
    try:
        if family == _socket.AF_INET6:
            port.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, 1)
        port.bind((address, forward.host_port))
    except OSError as error:
        port.close()
        what = f"{forward.protocol} port {forward.host_port}"
        if error.errno == errno.EADDRINUSE:
            raise BadInput(f"{what} of this host is in use", hint="choose another") from None
        if error.errno == errno.EADDRNOTAVAIL:
            raise BadInput(f"{address} is no address of this host", hint="leave it out") from None
        raise HostError(f"cannot take {what}: {error.strerror}") from None
    return port


def settle(path: str) -> None:
    """Make names, addresses and rules fit the cards that are there; without any, remove all."""
    network = load(path)
    if network is None:
        return
    cards = living(path)
    if not cards:
        remove(network)
        return
    lines, names = [], dnsmasq.host_names(network.address)
    for card in cards:
        if card["address"]:
            name = card.domain if spec.is_host_name(card.domain) else ""
            # "ignore" and "12h" mean something else there; a name without a dot dnsmasq has from
            # the names that it serves.
            told = name if "." in name else ""
            lines.append(",".join(part for part in (card["mac"], card["address"], told) if part))
            if name:
                names += f"{card['address']} {name}\n"
                if network.prefix6:
                    names += f"{subnet.eui64(network.prefix6, card['mac'])} {name}\n"
    listing = "".join(f"{line}\n" for line in lines)
    network.server.serve(_dnsmasq_settings(network), network.address, listing, names)
    nft.replace("inet", network.table, _rules(network, cards))


def _rules(network: Network, cards: Sequence[users.User]) -> list[nft.Chain]:
    bridge = network.bridge
    guard = nft.Chain("guard", "filter", "prerouting", -150)
    # The kernel would take such packets from a guest because route_localnet is set.
    guard.add(nft.meta("iifname", bridge), LOOPBACK_TARGET, nft.DROP)
    inward = nft.Chain("inward", "nat", "prerouting", -100)
    own = nft.Chain("own", "nat", "output", -100)
    for card in cards:
        for text in card["forwards"].split():
            for rule in _forward_rules(network, card, spec.parse_forward(text)):
                inward.add(*rule)
                own.add(*rule)
    outward = nft.Chain("outward", "nat", "postrouting", 100)
    to_bridge = nft.meta("oifname", bridge)
    loopback = nft.field("ip", "saddr", nft.network("127.0.0.0/8"))
    outward.add(to_bridge, loopback, nft.MASQUERADE)
    # A guest that uses a forwarded port of the host: the answer must come back through the host.
    redirected = nft.tracked("status", "dnat")
    outward.add(nft.meta("iifname", bridge), to_bridge, redirected, nft.MASQUERADE)
    ranges = [("ip", str(network.subnet))]
    if network.prefix6:
        ranges.append(("ip6", f"{network.prefix6}::/64"))
    for family, text in ranges:
        away = nft.meta("oifname", bridge, "!=")
        outward.add(away, nft.field(family, "saddr", nft.network(text)), nft.MASQUERADE)
    through = nft.Chain("through", "filter", "forward", 0)
    from_outside = [nft.meta("iifname", bridge, "!="), to_bridge]
    through.add(*from_outside, nft.tracked("state", ["established", "related"]), nft.ACCEPT)
    through.add(*from_outside, redirected, nft.ACCEPT)
    through.add(*from_outside, nft.DROP)
    return [guard, inward, own, outward, through]


LOOPBACK_TARGET: Final = nft.field("ip", "daddr", nft.network("127.0.0.0/8"))


def _forward_rules(
    network: Network, card: users.User, forward: Forward
) -> list[list[dict[str, object]]]:
    port = nft.field(forward.protocol, "dport", forward.host_port)
    to4 = nft.dnat("ip", card["address"], forward.guest_port)
    if forward.host not in ("", spec.IPV4_ANY):
        return [[nft.field("ip", "daddr", forward.host), port, to4]]
    rules = [[nft.meta("nfproto", "ipv4"), nft.to_this_host(), port, to4]]
    if network.prefix6 and not forward.host:
        address = subnet.eui64(network.prefix6, card["mac"])
        to6 = nft.dnat("ip6", address, forward.guest_port)
        # Loopback stays out: there is no route_localnet for IPv6.
        not_loopback = nft.field("ip6", "daddr", "::1", "!=")
        rules.append([not_loopback, nft.to_this_host(), port, to6])
    return rules


def remove(network: Network) -> None:
    """Remove all of it, and its record last; what could not be removed keeps the record."""
    failed: list[HostError] = []
    for step in (
        network.server.stop,
        lambda: nft.delete("inet", network.table),
        lambda: links.remove_bridge(network.bridge),
        lambda: sysctl.put_back(network.old),
    ):
        try:
            step()
        except HostError as error:
            failed.append(error)
    if failed:
        raise failed[0]
    os.unlink(f"{network.folder}/{users.RECORD}")
