"""A guest in networks: two cards in the NAT network, one carried by us and one by the kernel."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

import kvmpv
from tests.boot.shell import text, wait_for
from tests.waiting import until

CARDS = ("vhost=off,forward=tcp:18080:80", "vhost=on")
MIB = 1 << 20
AMOUNT = 8 * MIB
PATIENCE = 60.0


@pytest.fixture(scope="module")
def guest() -> Iterator[kvmpv.Domain]:
    nets = [f"nat,{card}" for card in CARDS]
    with kvmpv.Domain(name="netguest", vcpus=2, memory=128 * MIB, nets=nets) as domain:
        wait_for(domain, "ip -4 -o address | grep -c 'eth[01]'", "2", PATIENCE)
        yield domain


def router(domain: kvmpv.Domain) -> str:
    return text(domain, "ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p' | head -n1")


def address(domain: kvmpv.Domain, card: int) -> str:
    found = text(domain, f"ip -4 -o address show eth{card}")
    return found.split()[3].partition("/")[0]


def ping(domain: kvmpv.Domain, card: int) -> str:
    return text(domain, f"ping -c1 -W20 -I {address(domain, card)} {router(domain)}")


@contextmanager
def routed(domain: kvmpv.Domain, card: int) -> Iterator[str]:
    """Have what goes to the host go by a card meanwhile; give the host's address."""
    host = router(domain)
    text(domain, f"ip route replace {host} dev eth{card} src {address(domain, card)}")
    yield host
    text(domain, f"ip route delete {host}")


def serve(data: bytes) -> tuple[int, threading.Thread]:
    """Listen for one connection, and send it data."""
    listener = socket.create_server(("", 0))
    listener.settimeout(PATIENCE)

    def run() -> None:
        with listener, listener.accept()[0] as connection:
            connection.settimeout(PATIENCE)
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)  # else nc would end at once
            while connection.recv(1 << 16):
                pass

    thread = threading.Thread(target=run)
    thread.start()
    return listener.getsockname()[1], thread


def test_names_of_the_host_and_its_network_resolve(guest: kvmpv.Domain) -> None:
    assert router(guest) in text(guest, f"nslookup {socket.gethostname()}")
    assert address(guest, 0) in text(guest, "nslookup netguest")


@pytest.mark.parametrize("card", [0, 1])
def test_host_answers_on_each_card(guest: kvmpv.Domain, card: int) -> None:
    assert " 0% packet loss" in ping(guest, card)


def test_who_carries_is_in_the_statistics(guest: kvmpv.Domain) -> None:
    stats = guest.stats()
    assert (stats["device0_vhost"], stats["device1_vhost"]) == (0, 1)
    assert stats["device0_rx_packets"] > 0


def test_queues_of_a_pair_share_an_event_channel(guest: kvmpv.Domain) -> None:
    lines = text(guest, "grep -- '-[io].*put\\.' /proc/interrupts").splitlines()
    assert len(lines) == len(CARDS)
    assert all("input.0, " in line and "output.0" in line for line in lines)


@pytest.mark.parametrize("card", [0, 1])
def test_much_data_arrives_whole(guest: kvmpv.Domain, card: int) -> None:
    data = os.urandom(AMOUNT)
    port, thread = serve(data)
    with routed(guest, card) as host:
        said = text(guest, f"nc {host} {port} </dev/null | sha256sum")
    thread.join()
    assert said.split()[0] == hashlib.sha256(data).hexdigest()


def test_much_data_is_sent_whole_and_the_vmm_does_not_notice(guest: kvmpv.Domain) -> None:
    """Served by sendfile: nc writes kilobytes, and how many go at once is a matter of speed."""
    text(guest, f"head -c {AMOUNT} /dev/zero >/tmp/zero; httpd -p 8080 -h /tmp")
    before = guest.stats()
    with (
        routed(guest, 0),
        socket.create_connection((address(guest, 0), 8080), PATIENCE) as connection,
    ):
        connection.sendall(b"GET /zero HTTP/1.0\r\n\r\n")
        got = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    after = guest.stats()
    assert got.partition(b"\r\n\r\n")[2] == bytes(AMOUNT)
    sent = after["device0_tx_packets"] - before["device0_tx_packets"]
    assert sent > AMOUNT / 65536  # it went by this card
    assert sent < AMOUNT / 1448  # segments go in larger pieces than the wire has
    assert after["exits_to_user_space"] - before["exits_to_user_space"] < 100


def test_forwarded_port_reaches_the_guest(guest: kvmpv.Domain) -> None:
    text(guest, "(echo from the guest | nc -l -p 80 >/dev/null) >/dev/null 2>&1 &")
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with socket.create_connection(("127.0.0.1", 18080), PATIENCE) as connection:
                if connection.recv(100) == b"from the guest\n":
                    return
        except ConnectionError:
            pass  # it does not listen yet
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_traffic_goes_on_when_the_worker_is_killed(guest: kvmpv.Domain) -> None:
    def restarted(times: int) -> bool:
        return int(guest.devices()[0]["restarts"]) == times

    for killed in (1, 2):
        os.kill(int(guest.devices()[0]["pid"]), signal.SIGKILL)
        until(partial(restarted, killed), PATIENCE)
        for card in range(len(CARDS)):
            assert " 0% packet loss" in ping(guest, card)


def test_card_comes_and_goes_while_the_guest_runs(guest: kvmpv.Domain) -> None:
    number = guest.attach_net("nat,vhost=off,mac=52:54:00:00:00:77")
    count = "grep -c 52:54:00:00:00:77 /sys/class/net/*/address | grep -c ':1'"
    wait_for(guest, count, "1", PATIENCE)
    guest.detach(number)
    wait_for(guest, count, "0", PATIENCE)
