"""A device between its driver and its backend: one that takes notes, in a thread of the test's."""

from __future__ import annotations

import _socket
import os
import select
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from kvmpv import abi, memory
from kvmpv.errors import VhostUserError
from kvmpv.vhostuser import message
from kvmpv.vhostuser.backend import Session
from kvmpv.virtio import link, models, spec
from kvmpv.virtio.device import Device
from kvmpv.virtio.queue import Queue
from tests.unit.hypercall.world import Host
from tests.unit.vhostuser.peer import Recorder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvmpv.vhostuser.device import Vring

RAM = 1 << 20
NEEDED = spec.mask(spec.F_VERSION_1, spec.F_ACCESS_PLATFORM)
BEGUN = spec.ACKNOWLEDGE | spec.DRIVER | spec.FEATURES_OK
RUNS = BEGUN | spec.DRIVER_OK
MAC = "52:54:00:00:00:01"


class Backend(Recorder):
    """A backend that is served by a thread until its front end hangs up."""

    features = spec.mask(
        *(spec.F_VERSION_1, spec.F_EVENT_IDX, spec.BLK_F_FLUSH, spec.BLK_F_CONFIG_WCE)
    )

    def __init__(self, **changes: int) -> None:
        super().__init__()
        self.__dict__.update(changes)
        self.space = bytearray(spec.BLK_CONFIG.pack(2048, *[0] * 19))
        self.space[spec.BLK_CONFIG_WCE_OFFSET] = 1  # it caches what is written
        self.errors: list[int] = []
        self.ours, theirs = socket.socketpair()
        self.session = Session(_socket.socket(fileno=theirs.detach()), self)
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def start_queue(self, index: int, vring: Vring) -> None:
        super().start_queue(index, vring)
        self.errors.append(os.dup(vring.err))

    def _serve(self) -> None:
        try:
            while select.select([self.session], [], [], 10)[0]:
                self.session.ready()
        except VhostUserError:
            pass
        self.session.close()

    def die(self) -> None:
        """Hang up without a word."""
        end = socket.socket(fileno=os.dup(self.session.fileno()))
        end.shutdown(socket.SHUT_RDWR)
        end.close()
        self.thread.join(10)


class Transport:
    """Take notes of what a device asks of its transport."""

    def __init__(self) -> None:
        self.connected: list[int] = []
        self.told: list[tuple[int, int, bool]] = []

    def connect(self, _device: Device, queues: list[Queue]) -> None:
        self.connected += [queue.index for queue in queues]

    def disconnect(self, _device: Device, queues: list[Queue]) -> None:
        for queue in queues:
            if queue.index in self.connected:
                self.connected.remove(queue.index)

    def changed(self, device: Device) -> None:
        self.told.append((device.status, device.generation, device.removed))


class World:
    """A device in guest memory, its transport, its host, and the backends that it gets."""

    def __init__(self, kind: str = "blk", loss: str = "reset", **options: str) -> None:
        self.fd = memory.create_memfd("test", RAM)
        self.memory = memory.map_regions([(0, RAM, self.fd, 0)])
        self.host = Host()
        self.transport = Transport()
        model = models.model(kind, options)
        self.device = Device(3, model, self.memory, self.host, loss)
        self.device.transport = self.transport
        self.backends: list[Backend] = []

    def bring(self, **changes: int) -> Backend:
        """Connect another backend; it must be one that the device can use."""
        backend = Backend(**changes)
        self.backends.append(backend)
        assert self.device.connect(_socket.socket(fileno=backend.ours.detach())), self.device.why
        return backend

    def status(self, status: int, features: int = 0) -> int:
        with self.device.lock:
            return self.device.write_status(status, features)

    def queue(self, index: int = 0, size: int = 8) -> int:
        queue = Queue(index, 0)
        queue.size, queue.vector = size, index
        queue.descriptors = 0x10000 * (index + 1)
        queue.available, queue.used = queue.descriptors + 0x1000, queue.descriptors + 0x2000
        with self.device.lock:
            return self.device.set_queue(index, queue)

    def start(self, features: int = NEEDED, queues: int = 1) -> None:
        """Do as a driver does."""
        assert self.status(BEGUN, features) == 0
        assert self.device.status == BEGUN
        for index in range(queues):
            assert self.queue(index) == 0
        assert self.status(RUNS) == 0

    def indices(self, available: int, used: int) -> None:
        """Have queue 0's rings say so."""
        self.memory.write(0x11002, available.to_bytes(2, "little"))
        self.memory.write(0x12002, used.to_bytes(2, "little"))

    def close(self) -> None:
        self.device.close()
        for backend in self.backends:
            backend.thread.join(10)
            assert not backend.thread.is_alive()
            for fd in backend.errors:
                os.close(fd)
        self.memory.close()
        os.close(self.fd)


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


def test_backend_is_set_up_in_order_and_not_told_of_our_own_features(world: World) -> None:
    backend = world.bring()
    world.start(NEEDED | 1 << spec.F_EVENT_IDX)
    told = spec.mask(spec.F_VERSION_1, spec.F_EVENT_IDX)
    starts = [call for call in backend.calls if call[0] != "enabled"]
    assert starts == [("features", told), ("memory", 1), ("start", 0, 0, False)]
    assert backend.calls[-1] == ("enabled", 0, True)
    assert backend.inflight[2:] == (1, 256)
    assert backend.regions[0].gpa == 0
    assert world.transport.connected == [0]


def test_reset_stops_the_queues_and_forgets_all(world: World) -> None:
    backend = world.bring()
    world.start()
    assert world.status(0) == 0
    assert backend.calls[-1] == ("stop", 0)
    assert (world.device.status, world.device.accepted) == (0, 0)
    assert world.transport.connected == []
    assert world.device.queues[0].kick == -1
    world.start()
    assert ("start", 0, 0, True) in backend.calls


def test_status_follows_the_specification(world: World) -> None:
    world.bring()
    assert world.status(0x20) == -abi.EINVAL
    assert world.status(1 << 40) == -abi.EINVAL
    world.status(spec.ACKNOWLEDGE | spec.DRIVER_OK)
    assert world.device.status == spec.ACKNOWLEDGE  # no DRIVER_OK without FEATURES_OK
    world.status(BEGUN, NEEDED | 1 << 60)
    assert not world.device.status & spec.FEATURES_OK
    world.status(BEGUN, 1 << spec.F_VERSION_1)
    assert not world.device.status & spec.FEATURES_OK
    world.status(BEGUN, NEEDED)
    world.status(spec.FEATURES_OK | spec.NEEDS_RESET, 0)
    assert world.device.status == BEGUN  # bits are added, and that one is ours
    assert world.device.accepted == NEEDED


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("size", 3, abi.EINVAL),
        ("size", 512, abi.EINVAL),
        ("descriptors", 8, abi.EINVAL),
        ("available", 1, abi.EINVAL),
        ("used", 2, abi.EINVAL),
        ("descriptors", RAM, abi.EFAULT),
        ("used", RAM - 64, abi.EFAULT),
        ("available", (1 << 64) - 2, abi.EFAULT),
    ],
)
def test_rings_that_cannot_be_are_refused(world: World, field: str, value: int, error: int) -> None:
    world.bring()
    world.status(BEGUN, NEEDED)
    queue = Queue(0, 0)
    queue.size, queue.descriptors, queue.available, queue.used = 256, 0x1000, 0x2000, 0x3000
    setattr(queue, field, value)
    assert world.device.set_queue(0, queue) == -error
    assert world.queue() == 0
    assert world.queue() == -abi.EBUSY
    assert world.queue(1) == -abi.ENOENT


def test_next_backend_goes_on_where_the_used_ring_is(world: World) -> None:
    first = world.bring()
    world.start()
    world.indices(available=9, used=5)
    first.die()
    world.host.turn()
    assert not world.device.link.connected
    assert world.device.status == RUNS
    second = world.bring()
    assert ("start", 0, 5, False) in second.calls
    assert second.inflight[2:] == (1, 256)
    assert os.eventfd_read(world.device.queues[0].kick) >= 1
    assert os.eventfd_read(world.device.queues[0].call) >= 1  # the driver looks again


def test_reset_waits_for_who_can_answer_for_requests(world: World) -> None:
    first = world.bring()
    world.start()
    world.indices(available=9, used=5)
    first.die()
    assert world.status(0) == -abi.EAGAIN
    world.bring()
    assert world.status(0) == 0


@pytest.mark.parametrize("owes", [False, True])
@pytest.mark.parametrize("loss", ["reset", "crash"])
def test_requests_that_nobody_can_answer_for(owes: bool, loss: str) -> None:
    world = World(loss=loss)
    without_log = message.PF_CONFIG
    first = world.bring(protocol_features=without_log)
    world.start()
    world.indices(available=9, used=5 if owes else 9)
    first.die()
    world.host.turn()
    assert bool(world.device.status & spec.NEEDS_RESET) is owes
    assert len(world.host.crashes) == (owes and loss == "crash")
    second = world.bring(protocol_features=without_log)
    assert (("start", 0, 9, False) in second.calls) is not owes
    assert world.status(0) == 0
    world.close()


def test_backend_without_a_log_cannot_take_requests_over(world: World) -> None:
    world.bring()
    world.start()
    world.indices(available=9, used=5)
    world.backends[0].die()
    world.host.turn()
    last = Backend(protocol_features=message.PF_CONFIG)
    world.backends.append(last)
    assert not world.device.connect(_socket.socket(fileno=last.ours.detach()))
    assert "cannot take over" in world.device.why
    assert ("start", 0, 5, False) not in last.calls


def test_backend_that_offers_less_is_refused(world: World) -> None:
    world.bring().die()
    world.host.turn()
    less = Backend(features=1 << spec.F_VERSION_1)
    world.backends.append(less)
    assert not world.device.connect(_socket.socket(fileno=less.ours.detach()))
    assert "lacks features" in world.device.why


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"features": 0}, "legacy"),
        ({"protocol_features": 0}, "no config space"),
        ({"queue_count": 0}, "has 0 queues, not 1"),
    ],
)
def test_backend_that_cannot_serve_is_refused(changes: dict[str, int], why: str) -> None:
    world = World()
    backend = Backend(**changes)
    world.backends.append(backend)
    assert not world.device.connect(_socket.socket(fileno=backend.ours.detach()))
    assert why in world.device.why
    assert not world.device.known
    world.close()


def test_backend_that_never_answers_is_cut_off(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "FIRST_PATIENCE", 0.05)
    ours, theirs = socket.socketpair()
    assert not world.device.connect(_socket.socket(fileno=theirs.detach()))
    assert "does not answer" in world.device.why
    assert ours.recv(1000)  # it was asked
    assert ours.recv(1) == b""
    ours.close()


def test_config_change_is_told_with_another_generation(world: World) -> None:
    backend = world.bring()
    world.start()
    before = world.device.generation
    backend.space[:8] = (4096).to_bytes(8, "little")
    backend.session.config_changed()
    world.host.turn()
    assert world.device.generation == before + 1
    assert world.device.model.config[:8] == (4096).to_bytes(8, "little")
    assert world.transport.told[-1] == (RUNS, before + 1, False)


def test_driver_may_write_what_it_may(world: World) -> None:
    backend = world.bring()
    world.start(NEEDED | 1 << spec.BLK_F_CONFIG_WCE)
    with world.device.lock:
        assert world.device.write_config(spec.BLK_CONFIG_WCE_OFFSET, b"\0") == 0
        assert world.device.write_config(0, b"\1") == -abi.EINVAL
    assert backend.space[spec.BLK_CONFIG_WCE_OFFSET] == 0
    assert world.device.model.config[spec.BLK_CONFIG_WCE_OFFSET] == 0


def test_next_backend_caches_no_more_than_the_driver_knows(world: World) -> None:
    backend = world.bring()
    world.start(NEEDED | 1 << spec.BLK_F_CONFIG_WCE)
    with world.device.lock:
        assert world.device.write_config(spec.BLK_CONFIG_WCE_OFFSET, b"\0") == 0
    generation = world.device.generation
    backend.die()
    assert world.bring().space[spec.BLK_CONFIG_WCE_OFFSET] == 0
    assert world.device.generation == generation
    assert world.device.status == RUNS


def test_driver_is_shown_no_switch_that_says_that_nothing_is_cached(world: World) -> None:
    backend = world.bring()
    assert world.device.offered >> spec.BLK_F_CONFIG_WCE & 1
    backend.space[spec.BLK_CONFIG_WCE_OFFSET] = 0
    world.device.model.config = bytes(backend.space)
    assert not world.device.model.offered(world.device.link.features) >> spec.BLK_F_CONFIG_WCE & 1


def test_broken_ring_stops_the_device_until_its_reset(world: World) -> None:
    backend = world.bring()
    world.start()
    os.eventfd_write(backend.errors[0], 1)
    world.host.turn()
    assert world.device.status == RUNS | spec.NEEDS_RESET
    assert world.transport.told[-1][0] == RUNS | spec.NEEDS_RESET
    assert world.status(0) == 0
    world.start()


def test_network_enables_the_pairs_that_its_driver_wants() -> None:
    world = World("net", mac=MAC, queues="2")
    backend = world.bring(features=1 << spec.F_VERSION_1)
    accepted = NEEDED | spec.mask(spec.NET_F_MQ, spec.NET_F_CTRL_VQ)
    world.start(accepted, queues=5)
    assert [call[1] for call in backend.calls if call[0] == "start"] == [0, 1, 2, 3]
    enabled = {call[1]: call[2] for call in backend.calls if call[0] == "enabled"}
    assert enabled.get(0)
    assert not enabled.get(2)
    with world.device.lock:
        assert world.device.enable_pairs(2)
    assert backend.calls[-2:] == [("enabled", 2, True), ("enabled", 3, True)]
    assert world.status(0) == 0
    world.close()


def test_driver_of_a_network_is_told_that_its_backend_is_another() -> None:
    world = World("net", mac=MAC)
    backend = world.bring(features=1 << spec.F_VERSION_1)
    world.start(NEEDED | spec.mask(spec.NET_F_CTRL_VQ, spec.NET_F_GUEST_ANNOUNCE), queues=3)
    before = world.device.generation
    backend.die()
    world.host.turn()
    world.bring(features=1 << spec.F_VERSION_1)
    assert world.transport.told[-1] == (RUNS, before + 1, False)
    status = spec.NET_CONFIG.unpack(world.device.model.config)[1]
    assert status == spec.NET_S_LINK_UP | spec.NET_S_ANNOUNCE
    assert world.status(0) == 0
    world.close()


def test_removed_device_uses_nothing_and_bears_being_taken_down(world: World) -> None:
    backend = world.bring()
    world.start()
    world.device.remove()
    assert ("stop", 0) in backend.calls
    assert world.transport.connected == []
    assert world.transport.told[-1][2]
    assert world.queue() == -abi.EIO
    assert world.status(RUNS) == 0
    assert world.status(0) == 0


def test_state_is_kept_across_a_save(world: World) -> None:
    world.bring()
    world.start()
    with world.device.lock:
        world.device.pause()
        state = world.device.state()
    assert state["queues"][0]["base"] == 7  # where the backend stopped
    other = World()
    with other.device.lock:
        other.device.restore(state)
    backend = other.bring()
    assert ("start", 0, 7, False) in backend.calls
    assert other.device.status == RUNS
    other.close()
