"""A worker that is killed is replaced, and the traffic of its card goes on within a second."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from tests.host.dom0.workers import Worker
from tests.host.net.card import Card, frame, make_tap

if TYPE_CHECKING:
    from pathlib import Path

    from tests.host.net.namespace import Namespace

TAP = "t0"


def make_named_tap(namespace: Namespace) -> None:
    namespace.run("ip", "tuntap", "add", "dev", TAP, "mode", "tap", "multi_queue", "vnet_hdr")
    namespace.run("ip", "link", "set", TAP, "up", "addrgenmode", "none")


def start(namespace: Namespace, folder: Path) -> Worker:
    return namespace.call(Worker, folder, f"net,tap={TAP},vhost=off")


def reconnect(card: Card, worker: Worker) -> None:
    """Do what the VMM does with a new back end: all over again, from where the rings are."""
    card.frontend.close()
    card.frontend = frontend = worker.frontend()
    frontend.negotiate()
    frontend.set_features(card.accepted)
    frontend.set_mem_table(card.memory.table())
    for index, ring in enumerate(card.rings):
        ring.give_to(frontend, index, ring.used_index)
        os.eventfd_write(ring.kick, 1)


def test_traffic_goes_on_within_a_second(namespace: Namespace, tmp_path: Path) -> None:
    # As a domain's owner does it: the tap stays open while workers come and go.
    name, fds = make_tap(namespace)
    device = f"net,tapfds={fds[0]},vhost=off"
    worker = Worker(tmp_path, device, fds=fds)
    card = Card(worker.frontend(), buffers=100)
    outside = namespace.packets(name)
    try:
        for round_ in range(4):
            for number in range(30):
                sent = frame(bytes([round_, number]) * 40)
                outside.send(sent)
                assert card.receive()[1] == sent
                card.send(sent)
                assert outside.recv(2000) == sent
            worker.process.kill()
            worker.wait()
            lost = frame(b"sent while nobody serves" * 4)
            card.offer(lost)
            worker.close()
            before = time.monotonic()
            worker = Worker(tmp_path, device, fds=fds)
            started = time.monotonic()
            reconnect(card, worker)
            assert outside.recv(2000) == lost
            card.rings[1].wait()
            assert time.monotonic() - started < 1
            assert time.monotonic() - before < 5
    finally:
        worker.close()
        card.close()
        os.close(fds[0])


def test_card_is_in_the_statistics(namespace: Namespace, tmp_path: Path) -> None:
    make_named_tap(namespace)
    with start(namespace, tmp_path) as worker:
        card = Card(worker.frontend())
        card.send(frame(bytes(60)))
        stats = worker.stats()
        assert stats["0.tx_packets"] == 1
        assert stats["0.tx_bytes"] == 74
        assert stats["0.vhost"] == 0
        assert worker.ask("limit 0 pps=100") == "ok"
        assert worker.ask("limit 0 nonsense=1").startswith("error")
        card.close()


def test_broken_ring_is_logged_once(namespace: Namespace, tmp_path: Path) -> None:
    make_named_tap(namespace)
    with start(namespace, tmp_path) as worker:
        card = Card(worker.frontend())
        card.rings[1].offer(60000)
        os.eventfd_write(card.rings[1].kick, 1)
        while "broken" not in worker.log:
            time.sleep(0.01)
        os.eventfd_write(card.rings[1].kick, 1)
        assert worker.ask("status").startswith("ok 0=net,connected")
        assert worker.log.count("queue 1 is broken by its driver: descriptor out of range") == 1
        card.close()
