"""Anti-spoofing: what a guest sends carries its own addresses, or goes nowhere.

One table of the bridge family for each tap, which is gone with the card.
"""

from __future__ import annotations

import _socket

from kvmpv.hostnet import nat, nft, subnet, tools

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from kvmpv.hostnet.users import User

BEFORE_ALL: Final = -300
DHCP_SERVER: Final = 67
DHCPV6_SERVER: Final = 547
CLIENT_MAC: Final = (8 + 28) * 8  # bits: chaddr of RFC 2131, behind UDP's header
NEIGHBOUR_SOLICITATION: Final = 135
ROUTER_ADVERTISEMENT: Final = 134
NEIGHBOUR_ADVERTISEMENT: Final = 136
REDIRECT: Final = 137
TARGET: Final = 8 * 8  # bits: of RFC 4861, sections 4.3 and 4.4
VLAN: Final = (0x8100, 0x88A8)  # 802.1Q, 802.1ad


def require() -> None:
    """Raise ``HostError`` where this host has no nft."""
    tools.require("nft", nft.PACKAGE)


def table_of(tap: str) -> str:
    """Return the name of the table that watches a tap."""
    return f"kvmpv_{tap}"


def watch(user: User, path: str) -> None:
    """Let only the card's own addresses out of its tap."""
    network = nat.load(path) if user["kind"] == "nat" else None
    mac = user["mac"]
    chain = nft.Chain("from", "filter", "prerouting", BEFORE_ALL)
    chain.add(nft.meta("iifname", user["tap"], "!="), nft.ACCEPT)
    chain.add(nft.field("ether", "saddr", mac, "!="), nft.DROP)
    # What is below would not be found behind a tag, and a tag of VLAN 0 is none to who receives it.
    chain.add(nft.field("ether", "type", nft.either(*VLAN)), nft.DROP)
    chain.add(nft.field("arp", "saddr ether", mac, "!="), nft.DROP)
    # Who gives addresses and routes is the network's host, never a guest.
    chain.add(nft.field("udp", "sport", nft.either(DHCP_SERVER, DHCPV6_SERVER)), nft.DROP)
    chain.add(nft.field("icmpv6", "type", nft.either(ROUTER_ADVERTISEMENT, REDIRECT)), nft.DROP)
    if network is not None:
        unset = nft.either(user["address"], "0.0.0.0")  # before the lease, and to probe (RFC 5227)
        chain.add(nft.field("arp", "saddr ip", unset, "!="), nft.DROP)
        chain.add(nft.field("ip", "saddr", unset, "!="), nft.DROP)
        own = [subnet.eui64("fe80:0:0:0", mac)]
        if network.prefix6:
            own.append(subnet.eui64(network.prefix6, mac))
        chain.add(nft.field("ip6", "saddr", nft.either("::", *own), "!="), nft.DROP)
        _keep_neighbours(chain, own)
        known = nft.either("ip", "arp", "ip6")  # the rest has addresses that nobody looked at
        chain.add(nft.field("ether", "type", known, "!="), nft.DROP)
    # Else it could decline another's address. Accepted first: of a piece too short none matches.
    to_server = nft.field("udp", "dport", DHCP_SERVER)
    chain.add(to_server, nft.raw("th", CLIENT_MAC, 48, f"0x{mac.replace(':', '')}"), nft.ACCEPT)
    chain.add(to_server, nft.DROP)
    nft.replace("bridge", table_of(user["tap"]), [chain])


def mend(users: Sequence[User], path: str) -> None:
    """Watch those taps that have no table any more."""
    there = nft.tables("bridge")
    for user in users:
        if table_of(user["tap"]) not in there:
            watch(user, path)


def _keep_neighbours(chain: nft.Chain, own: list[str]) -> None:
    """Let it claim its own IPv6 addresses only: in answers, and in the question that is a claim."""
    targets = [f"0x{_socket.inet_pton(_socket.AF_INET6, address).hex()}" for address in own]
    not_own = [nft.raw("th", TARGET, 128, target, "!=") for target in targets]
    answer = nft.field("icmpv6", "type", NEIGHBOUR_ADVERTISEMENT)
    chain.add(answer, *not_own, nft.DROP)
    probe = nft.field("icmpv6", "type", NEIGHBOUR_SOLICITATION)  # RFC 4862, section 5.4
    chain.add(nft.field("ip6", "saddr", "::"), probe, *not_own, nft.DROP)


def unwatch(tap: str) -> None:
    """Remove a tap's table."""
    nft.delete("bridge", table_of(tap))
