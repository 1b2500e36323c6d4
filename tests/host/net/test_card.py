"""Packets pass between a driver's rings and a tap, whole and in order."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

import pytest

from kvmpv.dom0.net import NetDevice
from kvmpv.errors import VhostUserError
from kvmpv.virtio import spec
from tests.host.net.card import (
    BUFFER,
    FEATURES,
    HEADER,
    MERGEABLE,
    OFFLOADS,
    Card,
    Ring,
    Served,
    frame,
    make_tap,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.host.net.namespace import Namespace

    Plug = Callable[..., tuple[Card, Served, str]]


@pytest.fixture
def plug(namespace: Namespace) -> Iterator[Plug]:
    """Return what makes a card on a tap; both end with the test."""
    made: list[tuple[Card, Served, list[int]]] = []

    def make(
        *, options: dict[str, str] | None = None, pairs: int = 1, **card: Any
    ) -> tuple[Card, Served, str]:
        name, fds = make_tap(namespace, pairs)
        given = {
            "tapfds": ":".join(str(fd) for fd in fds),
            "queues": str(pairs),
            "vhost": "off",
            **(options or {}),
        }
        served = Served(NetDevice(given))
        driver = Card(served.frontend, pairs=pairs, **card)
        made.append((driver, served, fds))
        return driver, served, name

    yield make
    for driver, served, fds in made:
        driver.close()
        served.close()
        served.device.close()
        for fd in fds:
            os.close(fd)


def test_frame_goes_out_as_it_is(plug: Plug, namespace: Namespace) -> None:
    card, served, name = plug()
    outside = namespace.packets(name)
    for length in (46, 100, 1500):
        sent = frame(os.urandom(length))
        card.send(sent)
        assert outside.recv(2000) == sent
    assert served.device.stats()["tx_packets"] == 3


def test_queues_without_a_kick_are_polled(plug: Plug, namespace: Namespace) -> None:
    card, served, name = plug(buffers=0)
    outside = namespace.packets(name)
    for index, ring in enumerate(card.rings):
        served.frontend.get_vring_base(index)
        served.frontend.set_vring_kick(index, -1)
        os.close(ring.kick)
        ring.kick = os.eventfd(0)  # nobody's
    for _ in range(3):
        sent = frame(os.urandom(60))
        card.send(sent)
        assert outside.recv(2000) == sent
        outside.send(sent)
        time.sleep(0.01)  # the thread sleeps
        card.post(card.rings[0], card.memory.take(BUFFER), BUFFER)
        assert card.receive()[1] == sent


def test_frame_of_many_pieces_goes_out_whole(plug: Plug, namespace: Namespace) -> None:
    card, _, name = plug()
    outside = namespace.packets(name)
    sent = frame(os.urandom(300))
    data = bytes(HEADER) + sent
    parts = [data[at : at + 7] for at in range(0, len(data), 7)]
    card.rings[1].post(*[(card.memory.put(part), len(part), False) for part in parts])
    assert outside.recv(2000) == sent


@pytest.mark.parametrize("features", [FEATURES, MERGEABLE])
def test_frame_comes_in_as_it_is(plug: Plug, namespace: Namespace, features: int) -> None:
    card, served, name = plug(features=features)
    outside = namespace.packets(name)
    for length in (46, 100, 1500):
        sent = frame(os.urandom(length))
        outside.send(sent)
        header, got, buffers = card.receive()
        assert got == sent
        assert buffers == 1
        assert header == bytes(10) + b"\x01\x00"
    assert served.device.stats()["rx_packets"] == 3


def test_frame_is_spread_over_small_buffers(plug: Plug, namespace: Namespace) -> None:
    card, _, name = plug(size=100, buffers=100)
    outside = namespace.packets(name)
    for length in (1400, 50, 1500, 46):
        sent = frame(os.urandom(length))
        outside.send(sent)
        _, got, buffers = card.receive()
        assert got == sent
        assert buffers == (HEADER + len(sent) + 99) // 100


def test_frame_waits_for_buffers(plug: Plug, namespace: Namespace) -> None:
    card, _, name = plug(size=100, buffers=4)
    outside = namespace.packets(name)
    sent = frame(os.urandom(1000))
    outside.send(sent)
    assert not select.select([card.rings[0].call], [], [], 0.05)[0]
    for _ in range(20):
        card.post(card.rings[0], card.memory.take(100), 100)
    assert card.receive()[1] == sent


def test_sending_does_not_wait_for_buffers(plug: Plug, namespace: Namespace) -> None:
    card, _, name = plug(size=100, buffers=4)
    outside = namespace.packets(name)
    held, sent = frame(os.urandom(1000)), frame(os.urandom(100))
    outside.send(held)
    assert not select.select([card.rings[0].call], [], [], 0.05)[0]
    card.send(sent)
    assert outside.recv(2000) == sent
    for _ in range(20):
        card.post(card.rings[0], card.memory.take(100), 100)
    assert card.receive()[1] == held


def test_both_queues_of_a_pair_have_one_thread(plug: Plug, namespace: Namespace) -> None:
    before = set(os.listdir("/proc/self/task"))
    card, _, name = plug()
    outside = namespace.packets(name)
    sent = frame(bytes(46))
    card.send(sent)
    assert outside.recv(2000) == sent
    outside.send(sent)
    assert card.receive()[1] == sent
    serving = set(os.listdir("/proc/self/task")) - before
    assert len(serving) == 2, "the pair's thread, and the test's own for the session"


def test_frame_too_long_for_its_buffer_is_dropped(plug: Plug, namespace: Namespace) -> None:
    card, served, name = plug(features=FEATURES, size=200)
    outside = namespace.packets(name)
    outside.send(frame(os.urandom(1000)))
    small = frame(os.urandom(100))
    outside.send(small)
    assert card.receive()[1] == small
    assert served.device.stats()["rx_drops"] == 1


def test_thousands_of_frames_keep_their_order(plug: Plug, namespace: Namespace) -> None:
    card, _, name = plug(buffers=100)
    outside = namespace.packets(name)
    for number in range(3000):
        body = number.to_bytes(4, "big") * (15 + number % 300)
        outside.send(frame(body))
        assert card.receive()[1] == frame(body)
        if number % 3 == 0:
            card.send(frame(body))
            assert outside.recv(2000) == frame(body)


def test_large_segments_cross_in_both_directions(plug: Plug, namespace: Namespace) -> None:
    card, _, name = plug(features=OFFLOADS, buffers=100)
    outside = namespace.packets(name)
    body = os.urandom(20000)
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40 + len(body), 1, 0, 64, 6, 0, *[b"\x0a\0\0\1"] * 2)
    tcp = struct.pack("!HHIIBBHHH", 1, 2, 0, 0, 0x50, 0x10, 1000, 0, 0)
    segment = frame(ip + tcp + body, b"\x08\x00")
    start = 14 + 20
    header = spec.NET_HDR.pack(1, spec.NET_HDR_GSO_TCPV4, start + 20, 1448, start, 16, 0)
    card.send(segment, header)
    assert outside.recv(65536) == segment
    # What the host's own stack sends comes in one piece, too.
    namespace.run("ip", "address", "add", "10.9.0.1/24", "dev", name)
    namespace.run("ip", "neigh", "add", "10.9.0.2", "lladdr", "52:4b:00:00:00:02", "dev", name)
    udp = namespace.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.sendto(os.urandom(1400), ("10.9.0.2", 9))
    while len(got := card.receive()[1]) < 1400:
        pass
    assert got[12:14] == b"\x08\x00"


def test_bad_header_costs_that_frame_only(plug: Plug, namespace: Namespace) -> None:
    card, served, name = plug(features=OFFLOADS)
    outside = namespace.packets(name)
    bad = spec.NET_HDR.pack(1, 0x7F, 0xFFFF, 0, 0xFFFF, 0xFFFF, 0)
    card.send(frame(bytes(100)), bad)
    card.send(b"", bytes(5))
    card.rings[1].post((card.memory.take(HEADER), HEADER, True))  # nothing to send
    good = frame(os.urandom(60))
    card.send(good)
    assert outside.recv(2000) == good
    assert served.device.stats()["tx_drops"] == 3


def test_ring_that_is_broken_stops_its_device_alone(plug: Plug, namespace: Namespace) -> None:
    card, served, _ = plug()
    other, _, name = plug()
    card.rings[1].offer(5000)
    os.eventfd_write(card.rings[1].kick, 1)
    assert select.select([card.rings[1].err], [], [], 5)[0]
    assert served.device._queues[1].fault == "descriptor out of range"
    outside = namespace.packets(name)
    other.send(frame(bytes(50)))
    assert outside.recv(2000) == frame(bytes(50))


def test_queue_that_broke_before_does_not_stop_the_next(plug: Plug, namespace: Namespace) -> None:
    """The worker hears of the broken one only when the front end has begun anew."""
    card, served, name = plug()
    broken = card.rings[1]
    broken.offer(5000)
    os.eventfd_write(broken.kick, 1)
    assert select.select([served.device._broken], [], [], 5)[0]
    served.frontend.get_vring_base(1)
    broken.close()
    card.rings[1] = Ring(card.memory)
    card.rings[1].give_to(served.frontend, 1)
    served.device._ring_broke()
    outside = namespace.packets(name)
    card.send(frame(bytes(50)))
    assert outside.recv(2000) == frame(bytes(50))


def test_mtu_that_the_config_space_cannot_hold_is_refused(plug: Plug) -> None:
    _, served, _ = plug()
    served.frontend.set_mtu(65535)
    assert served.frontend.get_config(10, 2) == b"\xff\xff"
    with pytest.raises(VhostUserError):
        served.frontend.set_mtu(65536)


def test_receive_queue_takes_no_readable_buffer(plug: Plug) -> None:
    card, served, _ = plug(buffers=0)
    card.rings[0].post((card.memory.take(BUFFER), BUFFER, False))
    assert select.select([card.rings[0].err], [], [], 5)[0]
    assert served.device._queues[0].fault == "chain is no request"


def test_queue_goes_on_where_it_stopped(plug: Plug, namespace: Namespace) -> None:
    card, served, name = plug(buffers=20)
    outside = namespace.packets(name)
    for round_ in range(5):
        for _ in range(3):
            sent = frame(os.urandom(60))
            outside.send(sent)
            assert card.receive()[1] == sent
            card.send(sent)
            assert outside.recv(2000) == sent
        for index, ring in enumerate(card.rings):
            base = served.frontend.get_vring_base(index)
            assert base == ring.used_index
            ring.give_to(served.frontend, index, base)
        assert round_ < 5


def test_disabled_queue_loses_what_is_sent_and_receives_nothing(
    plug: Plug, namespace: Namespace
) -> None:
    card, served, name = plug()
    outside = namespace.packets(name)
    for index in (0, 1):
        served.frontend.set_vring_enable(index, False)
    card.send(frame(bytes(60)))
    assert not select.select([outside], [], [], 0.05)[0]
    outside.send(frame(bytes(70)))
    assert not select.select([card.rings[0].call], [], [], 0.05)[0]
    for index in (0, 1):
        served.frontend.set_vring_enable(index, True)
    assert card.receive()[1] == frame(bytes(70))
    card.send(frame(bytes(80)))
    assert outside.recv(2000) == frame(bytes(80))


def test_each_pair_of_queues_sends_and_receives(plug: Plug, namespace: Namespace) -> None:
    card, served, name = plug(pairs=3)
    outside = namespace.packets(name)
    for pair in range(3):
        sent = frame(os.urandom(60))
        card.send(sent, pair=pair)
        assert outside.recv(2000) == sent
    # A tap remembers which queue a flow sent by, and answers there.
    seen = 0
    for number in range(60):
        outside.send(frame(number.to_bytes(2, "big") * 30))
    calls = [ring.call for ring in card.rings[::2]]
    while seen < 60:
        ready = select.select(calls, [], [], 5)[0]
        assert ready
        for fd in ready:
            os.eventfd_read(fd)
            ring = card.rings[2 * calls.index(fd)]
            ring.ask_for_signal()
            while ring.take_used():
                seen += 1
                ring.ask_for_signal()
    assert served.device.stats()["rx_packets"] == 60


def test_limit_of_packets_is_held(plug: Plug) -> None:
    card, _, _ = plug(options={"pps": "200", "pps_burst": "10"})
    before = time.monotonic()
    for _ in range(50):
        card.offer(frame(bytes(60)))
    for _ in range(50):
        card.rings[1].wait()
    assert 0.15 < time.monotonic() - before < 1


def test_limit_of_bytes_is_held_and_can_be_changed(plug: Plug, namespace: Namespace) -> None:
    card, served, name = plug(options={"bps": "100000", "bps_burst": "2000"}, buffers=100)
    outside = namespace.packets(name)
    before = time.monotonic()
    for _ in range(20):
        outside.send(frame(bytes(1400)))
    for _ in range(20):
        card.receive()
    assert 0.2 < time.monotonic() - before < 1.5
    served.device.limit({"bps": "0"})
    before = time.monotonic()
    for _ in range(20):
        outside.send(frame(bytes(1400)))
        card.receive()
    assert time.monotonic() - before < 0.2


def test_idle_card_uses_no_processor(plug: Plug, namespace: Namespace) -> None:
    cards = [plug()[0] for _ in range(5)]
    for card in cards:
        card.send(frame(bytes(60)))
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.05
    assert namespace.interfaces()


def test_unlimited_queue_of_a_small_ring_takes_a_long_burst(
    plug: Plug, namespace: Namespace
) -> None:
    card, _, name = plug(ring=8, buffers=8, size=256)
    outside = namespace.packets(name)
    for number in range(200):
        sent = frame(bytes([number]) * 1400)
        outside.send(sent)
        header, got, buffers = card.receive()
        assert (got, buffers) == (sent, 6)
        assert header[10:12] == b"\x06\x00"


def test_features_are_those_of_the_tap(plug: Plug) -> None:
    _, served, _ = plug()
    features = served.frontend.features
    assert features & MERGEABLE == MERGEABLE
    assert features & OFFLOADS == OFFLOADS
    assert not features >> spec.NET_F_MQ & 1
