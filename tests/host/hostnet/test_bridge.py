"""Cards on a bridge or a tap that somebody else has made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kvmpv.hostnet import links, tap
from tests.host.hostnet.guest import Guest

if TYPE_CHECKING:
    from tests.host.hostnet.conftest import Attach
    from tests.host.net.namespace import Namespace


@pytest.fixture
def bridge(host: Namespace) -> str:
    host.ip("link add br0 mtu 1400 type bridge")
    host.ip("address add 10.7.0.1/24 dev br0")
    host.ip("link set br0 up")
    return "br0"


def test_guests_on_a_bridge_reach_host_and_each_other(
    attach: Attach, host: Namespace, bridge: str
) -> None:
    cards = [attach("web", f"bridge={bridge}"), attach("db", f"bridge={bridge}")]
    assert [card.mtu for card in cards] == [1400, 1400]
    assert host.ip("-br link show br0").split()[2] not in [card.mac for card in cards]
    with Guest(cards[0]) as web, Guest(cards[1]) as db:
        for number, guest in enumerate((web, db), 2):
            guest.namespace.ip(f"address add 10.7.0.{number}/24 dev {guest.interface}")
        web.run("busybox", "ping", "-c1", "-W5", "10.7.0.3")
        db.run("busybox", "ping", "-c1", "-W5", "10.7.0.1")


def test_bridge_keeps_its_mtu_whatever_a_card_has(
    attach: Attach, host: Namespace, bridge: str
) -> None:
    host.ip("link add br1 type bridge")
    host.ip("link set br1 up")
    host.ip("-6 address add fd01::1/64 dev br1")
    for name, mtu in ((bridge, "1400"), ("br1", "1500")):
        card = attach(name, f"bridge={name},mtu=68")
        assert card.mtu == 68
        assert f"mtu {mtu} " in host.ip(f"link show {name}")
    assert "fd01::1" in host.ip("-6 address show br1")


def test_tap_of_somebody_has_its_own_mtu_back(attach: Attach, host: Namespace) -> None:
    host.ip("tuntap add t0 mode tap")
    card = attach("web", "tap=t0,mtu=9000")
    assert "mtu 9000 " in host.ip("link show t0")
    host.call(card.release)
    assert "mtu 1500 " in host.ip("link show t0")


def test_card_with_another_mac_is_silent_where_spoofing_is_watched(
    attach: Attach, bridge: str
) -> None:
    card = attach("web", f"bridge={bridge},antispoof")
    with Guest(card) as guest:
        guest.namespace.ip(f"address add 10.7.0.2/24 dev {guest.interface}")
        guest.run("busybox", "ping", "-c1", "-W5", "10.7.0.1")
        guest.namespace.ip(f"link set {guest.interface} address 52:4b:00:00:00:99")
        with pytest.raises(AssertionError):
            guest.run("busybox", "ping", "-c1", "-W1", "10.7.0.1")


def test_frame_with_a_tag_is_dropped_where_spoofing_is_watched(
    attach: Attach, host: Namespace, bridge: str
) -> None:
    card = attach("web", f"bridge={bridge},antispoof")
    head = b"\xff" * 6 + bytes.fromhex(card.mac.replace(":", ""))
    arp = bytes.fromhex("0806 0001 0800 06 04 0002 524b00000099") + bytes(42)
    plain = head + bytes.fromhex("88b5") + bytes(46)
    with Guest(card) as guest:
        wire, seen = guest.namespace.packets(guest.interface), host.packets(bridge)
        for tag in ("8100 0000", "88a8 0000", "88a8 0005 8100 0005"):
            wire.send(head + bytes.fromhex(tag) + arp)
        wire.send(plain)
        while (heard := seen.recv(2000)) != plain:
            assert arp not in heard


def test_two_cards_of_a_domain_differ(attach: Attach, bridge: str) -> None:
    first = attach("web", f"bridge={bridge}")
    second = attach("web", f"bridge={bridge}", 1)
    assert first.mac != second.mac
    assert first.tap != second.tap


@pytest.mark.parametrize("queues", [1, 3])
def test_tap_is_used_as_it_is(attach: Attach, host: Namespace, queues: int) -> None:
    several = "multi_queue" if queues > 1 else ""
    host.ip(f"tuntap add dev t0 mode tap {several}")
    host.ip("link set t0 mtu 9000 up")
    card = attach("web", f"tap=t0,queues={queues}")
    assert (card.tap, card.mtu, len(card.fds)) == ("t0", 9000, queues)
    assert {tap.name_of(fd) for fd in card.fds} == {"t0"}
    host.call(card.release)
    assert "t0" in host.interfaces()


def test_tap_that_we_made_is_gone_after_its_release(
    attach: Attach, host: Namespace, bridge: str
) -> None:
    card = attach("web", f"bridge={bridge},queues=2")
    assert host.call(links.exists, card.tap)
    assert len(card.fds) == 2
    host.call(card.release)
    assert not host.call(links.exists, card.tap)
