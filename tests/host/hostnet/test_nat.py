"""The NAT network: what a guest in it has, and that nothing of it stays."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

import pytest

from kvmpv.errors import BadInput
from kvmpv.hostnet import dnsmasq, subnet
from tests.host.hostnet.guest import Guest
from tests.host.net.namespace import Namespace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.host.hostnet.conftest import Attach


@pytest.fixture
def internet(host: Namespace) -> Iterator[Namespace]:
    """Return a machine outside, which knows the host and not its guests."""
    with Namespace() as outside:
        host.ip("link add up0 type veth peer name down0")
        thread = outside.call(threading.get_native_id)
        host.run("ip", "link", "set", "down0", "netns", str(thread))
        host.ip("address add 203.0.113.1/24 dev up0")
        host.ip("-6 address add 2001:db8::1/64 dev up0 nodad")
        host.ip("link set up0 up")
        outside.ip("address add 203.0.113.2/24 dev down0")
        outside.ip("-6 address add 2001:db8::2/64 dev down0 nodad")
        outside.ip("link set down0 up")
        yield outside
        host.ip("link delete up0")


def answer(where: Namespace, family: int, port: int, text: bytes) -> threading.Thread:
    """Listen for one connection and answer it with a text."""
    listener = where.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("", port))
    listener.listen()

    def serve() -> None:
        connection, peer = listener.accept()
        listener.close()
        connection.send(text + f" {peer[0]}".encode())
        connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def ask(where: Namespace, family: int, address: str, port: int) -> str:
    """Connect and return what is answered."""
    connection = where.socket(family, socket.SOCK_STREAM)
    connection.connect((address, port))
    return connection.recv(100).decode()


def test_guest_gets_address_names_and_routes(
    attach: Attach, host: Namespace, tmp_path: Path
) -> None:
    cards = [attach("web", "nat"), attach("db", "nat,mtu=1400")]
    with Guest(cards[0]) as guest:
        address, router, server, name, mtu = guest.dhcp(tmp_path)
        assert address == cards[0].address
        assert router == server
        assert (name, mtu) == ("web", "1500")
        guest.run("busybox", "ping", "-c1", "-W5", router)
        names = guest.run("busybox", "nslookup", "db", server)
        assert cards[1].address in names
        hostname = socket.gethostname()
        assert router in guest.run("busybox", "nslookup", hostname, server)
        assert guest.ipv6() in guest.run("busybox", "nslookup", "web", server)
    assert cards[1].mtu == 1400


@pytest.mark.parametrize(
    ("family", "outside", "own"),
    [
        (socket.AF_INET, "203.0.113.2", "203.0.113.1"),
        (socket.AF_INET6, "2001:db8::2", "2001:db8::1"),
    ],
)
def test_guest_reaches_the_outside_as_its_host(
    attach: Attach,
    host: Namespace,
    internet: Namespace,
    tmp_path: Path,
    family: int,
    outside: str,
    own: str,
) -> None:
    host.ip("-6 route add default via 2001:db8::2")
    card = attach("web", "nat")
    with Guest(card) as guest:
        guest.dhcp(tmp_path)
        if family == socket.AF_INET6:
            guest.ipv6()
            assert "default" in guest.run("ip", "-6", "route")
        answer(internet, family, 80, b"hello")
        assert ask(guest.namespace, family, outside, 80) == f"hello {own}"


def test_ports_are_forwarded(
    attach: Attach, host: Namespace, internet: Namespace, tmp_path: Path
) -> None:
    card = attach("web", "nat,forward=tcp:8080:80,forward=udp:5353:53,forward=tcp:0.0.0.0:8081:80")
    with Guest(card) as guest:
        guest.dhcp(tmp_path)
        for where, address, port in (
            (internet, "203.0.113.1", 8080),
            (host, "203.0.113.1", 8080),
            (host, "127.0.0.1", 8080),
            (internet, "203.0.113.1", 8081),
        ):
            thread = answer(guest.namespace, socket.AF_INET, 80, b"web")
            assert ask(where, socket.AF_INET, address, port).startswith("web")
            thread.join()
        datagrams = guest.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM)
        datagrams.bind(("", 53))
        client = internet.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.sendto(b"question", ("203.0.113.1", 5353))
        question, sender = datagrams.recvfrom(100)
        datagrams.sendto(b"answer to " + question, sender)
        assert client.recv(100) == b"answer to question"


def test_guest_is_not_reached_without_a_forward(
    attach: Attach, host: Namespace, internet: Namespace, tmp_path: Path
) -> None:
    card = attach("web", "nat")
    with Guest(card) as guest:
        _, router, *_ = guest.dhcp(tmp_path)
        internet.run(
            "ip", "route", "add", f"{router.rpartition('.')[0]}.0/24", "via", "203.0.113.1"
        )
        guest.run("busybox", "ping", "-c1", "-W5", "203.0.113.2")
        probe = internet.socket(socket.AF_INET, socket.SOCK_STREAM)
        probe.settimeout(0.3)
        listener = guest.namespace.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.bind(("", 80))
        listener.listen()
        with pytest.raises(TimeoutError):
            probe.connect((card.address, 80))
        assert ask_refused(host, card.address)


def ask_refused(host: Namespace, address: str) -> bool:
    """Say whether the host itself gets through to the guest, if only to be refused."""
    client = host.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        client.connect((address, 81))
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("name", ["ignore", "12h", "10.0.0.5", "web.example"])
def test_any_name_of_a_domain_gets_its_address(attach: Attach, tmp_path: Path, name: str) -> None:
    card = attach(name, "nat")
    with Guest(card) as guest:
        address, _, _, *rest = guest.dhcp(tmp_path)
        assert address == card.address
        assert rest[:-1] == ([] if name == "10.0.0.5" else [name.partition(".")[0]])


def test_network_stays_until_its_last_user_goes(attach: Attach, host: Namespace) -> None:
    cards = [attach(f"d{number}", "nat") for number in range(3)]
    assert len({card.address for card in cards}) == 3
    for card in cards[:2]:
        host.call(card.release)
    assert "kvmpv0" in host.interfaces()
    again = attach("d0", "nat")
    assert again.address == cards[0].address
    assert again.mac == cards[0].mac


def test_forwarded_port_is_nobody_elses(attach: Attach, host: Namespace) -> None:
    attach("web", "nat,forward=tcp:8080:80")
    other = host.socket(socket.AF_INET, socket.SOCK_STREAM)
    with pytest.raises(OSError, match="in use"):
        other.bind(("", 8080))
    with pytest.raises(BadInput, match="tcp port 8080 of this host is in use"):
        attach("other", "nat,forward=tcp:8080:80")
    with pytest.raises(BadInput, match="tcp port 81 is forwarded twice"):
        attach("other", "nat,forward=tcp:81:80,forward=tcp:81:90")


def test_subnet_is_one_that_the_host_does_not_use(attach: Attach, host: Namespace) -> None:
    host.ip("address add 192.168.190.77/24 dev lo")
    card = attach("web", "nat")
    assert not card.address.startswith("192.168.190.")
    with pytest.raises(BadInput, match="has the subnet"):
        attach("other", "nat,subnet=10.1.2.0/24")
    host.call(card.release)
    with pytest.raises(BadInput, match=r"192\.168\.190\.0/24 is in use on this host"):
        attach("web", "nat,subnet=192.168.190.0/24")
    card = attach("web", "nat,subnet=10.1.2.0/29")
    assert card.address.startswith("10.1.2.")


def test_small_subnet_runs_out_of_addresses(attach: Attach, host: Namespace) -> None:
    cards = [attach(f"d{number}", "nat,subnet=10.1.2.0/29") for number in range(5)]
    assert {card.address for card in cards} == {f"10.1.2.{number}" for number in range(2, 7)}
    with pytest.raises(Exception, match="all addresses"):
        attach("d5", "nat")


def test_spoofed_packets_go_nowhere(attach: Attach, host: Namespace, tmp_path: Path) -> None:
    card = attach("web", "nat,antispoof")
    with Guest(card) as guest:
        _, router, *_ = guest.dhcp(tmp_path)
        guest.run("busybox", "ping", "-c1", "-W5", router)
        stolen = card.address.rpartition(".")[0] + ".200"
        guest.run("ip", "address", "add", f"{stolen}/24", "dev", guest.interface)
        with pytest.raises(AssertionError):
            guest.run("busybox", "ping", "-c1", "-W1", "-I", stolen, router)
        guest.run("ip", "link", "set", guest.interface, "address", "52:4b:00:00:00:99")
        with pytest.raises(AssertionError):
            guest.run("busybox", "ping", "-c1", "-W1", router)


def test_frames_that_claim_what_is_anothers_go_nowhere(
    attach: Attach, host: Namespace, tmp_path: Path
) -> None:
    card, victim = attach("web", "nat,antispoof"), attach("db", "nat")
    mac, address = bytes.fromhex(card.mac.replace(":", "")), socket.inet_aton(card.address)
    other, stolen = (
        bytes.fromhex(victim.mac.replace(":", "")),
        socket.inet_aton(victim.address),
    )
    own6, stolen6 = (
        socket.inet_pton(socket.AF_INET6, subnet.eui64("fe80:0:0:0", one.mac))
        for one in (card, victim)
    )
    arp = bytes.fromhex("0806 0001 0800 06 04 0002")
    tag = bytes.fromhex("8100 0000")
    announcement = ipv6(own6, 58, bytes([134, 0, 0, 0]) + bytes(12))
    claims = [
        tag + arp + mac + stolen,
        tag + tag + arp + mac + stolen,
        tag + tag + ipv4(stolen, udp(9, 9, b"")),
        tag + announcement,
        announcement,
        ipv6(own6, 17, udp(547, 546, b"")),
        ipv6(own6, 58, bytes([136, 0, 0, 0, 32, 0, 0, 0]) + stolen6),
        ipv6(bytes(16), 58, bytes([135, 0, 0, 0, 0, 0, 0, 0]) + stolen6),
        ipv4(bytes(4), udp(68, 67, bytes(28) + other + bytes(202))),
        ipv4(bytes(4), udp(68, 67, bytes(28))),
        bytes.fromhex("8035 0001 0800 06 04 0003") + mac + stolen,
    ]
    truths = [
        ipv4(bytes(4), udp(68, 67, bytes(28) + mac + bytes(202))),
        ipv6(own6, 58, bytes([136, 0, 0, 0, 32, 0, 0, 0]) + own6),
        arp + mac + address,
    ]
    with Guest(card) as guest:
        guest.namespace.ip(f"link set {guest.interface} arp off")
        wire, seen = guest.namespace.packets(guest.interface), host.packets("kvmpv0")
        padded = [(b"\xff" * 6 + mac + one + MARK).ljust(60, b"\0") for one in claims + truths]
        for frame in padded:
            wire.send(frame)
        for frame in padded[len(claims) :]:
            while MARK not in (heard := seen.recv(2000)):
                pass  # what the host and its guests say by themselves
            assert heard == frame


MARK = b"the test's own"


def ipv4(source: bytes, payload: bytes) -> bytes:
    """Return a datagram to everybody, from its EtherType on."""
    length = (20 + len(payload) + len(MARK)).to_bytes(2, "big")
    head = b"\x45\0" + length + bytes(4) + b"\x40\x11\0\0" + source + b"\xff" * 4
    total = sum(int.from_bytes(head[at : at + 2], "big") for at in range(0, 20, 2)) % 0xFFFF
    return b"\x08\0" + head[:10] + (0xFFFF - total).to_bytes(2, "big") + head[12:] + payload


def ipv6(source: bytes, protocol: int, payload: bytes) -> bytes:
    """Return a packet to all nodes, from its EtherType on."""
    length = (len(payload) + len(MARK)).to_bytes(2, "big")
    everybody = socket.inet_pton(socket.AF_INET6, "ff02::1")
    head = b"\x60\0\0\0" + length + bytes([protocol, 255]) + source + everybody
    return b"\x86\xdd" + head + payload


def udp(source: int, target: int, payload: bytes) -> bytes:
    length = 8 + len(payload) + len(MARK)
    return b"".join(one.to_bytes(2, "big") for one in (source, target, length, 0)) + payload


def test_interfaces_that_learn_their_route_go_on_learning_it(
    attach: Attach, host: Namespace, internet: Namespace
) -> None:
    key = "net.ipv6.conf.up0.accept_ra"
    host.run("sysctl", "-w", f"{key}=1")
    card = attach("web", "nat")
    assert host.run("sysctl", "-n", key) == "2\n"
    host.call(card.release)
    assert host.run("sysctl", "-n", key) == "1\n"
    assert internet.interfaces()


def test_settings_that_forwarding_takes_along_are_put_back(
    attach: Attach, host: Namespace, internet: Namespace
) -> None:
    keys = (
        "ipv4.conf.all.accept_redirects",
        "ipv4.conf.up0.forwarding",
        "ipv4.conf.default.forwarding",
        "ipv6.conf.up0.forwarding",
        "ipv6.conf.default.forwarding",
    )
    before = ["0", "1", "1", "1", "1"]
    for key, value in zip(keys, before, strict=True):
        host.run("sysctl", "-w", f"net.{key}={value}")
    host.call(attach("web", "nat").release)
    after = host.run("sysctl", "-n", *(f"net.{key}" for key in keys)).split()
    assert after == before
    assert internet.interfaces()


def test_network_has_no_ipv6_where_new_interfaces_have_none(
    attach: Attach, host: Namespace
) -> None:
    host.run("sysctl", "-w", "net.ipv6.conf.default.disable_ipv6=1")
    assert attach("web", "nat").address
    assert "inet6" not in host.ip("address show kvmpv0")


def test_files_of_the_host_may_be_odd(
    attach: Attach, host: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolvers, hosts = tmp_path / "resolv.conf", tmp_path / "hosts"
    resolvers.symlink_to("nowhere/stub-resolv.conf")  # of a resolver that does not run
    hosts.write_bytes(b"10.9.9.9 other # caf\xe9\n")
    monkeypatch.setattr(dnsmasq, "RESOLVERS", str(resolvers))
    monkeypatch.setattr(dnsmasq, "HOSTS", str(hosts))
    assert attach("web", "nat").address
    assert "no-resolv" in next(tmp_path.rglob("dnsmasq.conf")).read_text().splitlines()
    assert "10.9.9.9 other" in next(tmp_path.rglob("dnsmasq.hosts")).read_text()
