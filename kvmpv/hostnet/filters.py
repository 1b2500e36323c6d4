"""Anti-spoofing: what a guest sends carries its own addresses, or goes nowhere.

One table of the bridge family for each tap, which is gone with the card.
"""

from __future__ import annotations

from kvmpv.hostnet import nat, nft, subnet, tools

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from kvmpv.hostnet.users import User

BEFORE_ALL: Final = -300
DHCP_SERVER: Final = 67
ROUTER_ADVERTISEMENT: Final = 134
NEIGHBOUR_ADVERTISEMENT: Final = 136


def require() -> None:
    """Raise ``HostError`` where this host has no nft."""
    tools.require("nft", nft.PACKAGE)


def table_of(tap: str) -> str:
    """Return the name of the table that watches a tap."""
    return f"kvmpv_{tap}"


def watch(user: User, path: str) -> None:
    """Let only the card's own addresses out of its tap."""
    network = nat.load(path) if user["kind"] == "nat" else None
    chain = nft.Chain("from", "filter", "prerouting", BEFORE_ALL)
    chain.add(nft.meta("iifname", user["tap"], "!="), nft.ACCEPT)
    chain.add(nft.field("ether", "saddr", user["mac"], "!="), nft.DROP)
    chain.add(nft.field("arp", "saddr ether", user["mac"], "!="), nft.DROP)
    # Who gives addresses and routes is the network's host, never a guest.
    chain.add(nft.field("udp", "sport", DHCP_SERVER), nft.DROP)
    chain.add(nft.field("icmpv6", "type", ROUTER_ADVERTISEMENT), nft.DROP)
    if network is not None:
        unset = nft.either(user["address"], "0.0.0.0")  # before the lease, and to probe (RFC 5227)
        chain.add(nft.field("arp", "saddr ip", unset, "!="), nft.DROP)
        chain.add(nft.field("ip", "saddr", unset, "!="), nft.DROP)
        own = [subnet.eui64("fe80:0:0:0", user["mac"])]
        if network.prefix6:
            own.append(subnet.eui64(network.prefix6, user["mac"]))
        chain.add(nft.field("ip6", "saddr", nft.either("::", *own), "!="), nft.DROP)
    nft.replace("bridge", table_of(user["tap"]), [chain])


def unwatch(tap: str) -> None:
    """Remove a tap's table."""
    nft.delete("bridge", table_of(tap))
