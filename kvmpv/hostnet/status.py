"""What there is on this host: networks, who uses them, and what passed through their taps."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from kvmpv.hostnet import nat, users

if TYPE_CHECKING:
    from typing import Any


@dataclass
class Traffic:
    """What a card's guest has sent and received, by its tap's counters."""

    sent_packets: int = 0
    sent_bytes: int = 0
    received_packets: int = 0
    received_bytes: int = 0
    dropped: int = 0


@dataclass
class Card:
    """A card in use. ``seen`` are the addresses that the host has met behind its MAC."""

    domain: str
    index: int
    kind: str
    network: str
    tap: str
    mac: str
    address: str
    leased: bool
    forwards: list[str]
    antispoof: bool
    pid: int
    seen: list[str] = field(default_factory=list)
    traffic: Traffic = field(default_factory=Traffic)


@dataclass
class Network:
    """A network that cards are in; of one that is not ours there is only the name."""

    name: str
    kind: str
    subnet: str = ""
    address: str = ""
    prefix6: str = ""
    mtu: int = 0
    dnsmasq: int = 0
    leases: list[tuple[str, str, str]] = field(default_factory=list)
    cards: list[Card] = field(default_factory=list)


def networks() -> list[Network]:
    """Return all networks that domains of this host use, with their cards.

    Raise ``HostError`` where the kernel cannot be asked.
    """
    found: dict[str, Network] = {}
    for path in _folders():
        own = nat.load(path)
        if own is not None:
            found[own.bridge] = _of_ours(own)
        leased = {address for one in found.values() for _, address, _ in one.leases}
        for user in users.living(path)[0]:
            name = user["target"] or (own.bridge if own else "")
            network = found.setdefault(name, Network(name, user["kind"]))
            network.cards.append(_card(user, name, leased))
    if any(network.cards for network in found.values()):
        _measure([card for network in found.values() for card in network.cards])
    return list(found.values())


def _folders() -> list[str]:
    """Return this user's folder, and root's, which everybody may read."""
    own = users.folder()
    roots = f"/run/kvmpv-net/{os.path.basename(own)}"
    return [own] if own == roots else [own, roots]


def _of_ours(own: nat.Network) -> Network:
    return Network(
        own.bridge,
        "nat",
        str(own.subnet),
        own.address,
        f"{own.prefix6}::/64" if own.prefix6 else "",
        own.mtu,
        own.server.pid,
        own.server.leases(),
    )


def _card(user: users.User, network: str, leased: set[str]) -> Card:
    return Card(
        user.domain,
        user.index,
        user["kind"],
        network,
        user["tap"],
        user["mac"],
        user["address"],
        user["address"] in leased,
        user["forwards"].split(),
        user["antispoof"] == "on",
        int(user["pid"] or 0),
    )


def _measure(cards: list[Card]) -> None:
    """Ask the kernel what it knows of the taps, and of who is behind them."""
    from pyroute2 import IPRoute  # type: ignore[import-untyped]

    with IPRoute() as kernel:
        counters = _counters(kernel)
        seen = _neighbours(kernel)
    for card in cards:
        card.traffic = counters.get(card.tap, Traffic())
        card.seen = sorted(seen.get(card.mac, []))


def _counters(kernel: Any) -> dict[str, Traffic]:
    found = {}
    for link in kernel.get_links():
        stats = link.get("stats64") or {}
        # What a guest sends, its tap receives.
        found[str(link.get("ifname"))] = Traffic(
            stats.get("rx_packets", 0),
            stats.get("rx_bytes", 0),
            stats.get("tx_packets", 0),
            stats.get("tx_bytes", 0),
            stats.get("rx_dropped", 0) + stats.get("tx_dropped", 0),
        )
    return found


def _neighbours(kernel: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for neighbour in kernel.get_neighbours():
        mac, address = neighbour.get("lladdr"), neighbour.get("dst")
        if mac and address:
            found.setdefault(str(mac), []).append(str(address))
    return found


def as_dict(network: Network) -> dict[str, object]:
    """Return a network as JSON has it."""
    return asdict(network)
