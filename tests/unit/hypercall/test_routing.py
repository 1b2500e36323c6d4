"""Event channels that an eventfd sends on: the table of routes is written seldom, and in time."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from kvmpv import abi
from kvmpv.errors import KvmError
from kvmpv.hypercall import events
from tests.unit.hypercall.world import MESSAGE, World

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def fds() -> Iterator[list[int]]:
    made = [os.eventfd(0) for _ in range(4)]
    yield made
    for fd in made:
        os.close(fd)


def bind(world: World, channel: int, vector: int) -> int | None:
    record = abi.EVTCHN_BIND.pack(1, abi.EVTCHN_BIND.size, 1, abi.EVTCHN_MESSAGE.size)
    world.memory.write(0x8000, record + abi.EVTCHN_MESSAGE.pack(MESSAGE, vector, channel))
    return world.call(abi.HC_EVTCHN_BIND, 0x8000)


def test_many_queues_are_one_change_of_the_table(world: World, fds: list[int]) -> None:
    channels = [world.channel(0x40 + number) for number in range(4)]
    world.events.connect(list(zip(channels, fds, strict=True)))
    assert world.wiring.tables == 1
    assert world.wiring.routes == [(channel, MESSAGE, 0x40 + channel) for channel in channels]
    assert world.wiring.irqfds == dict(zip(fds, channels, strict=True))
    world.events.disconnect(fds)
    assert world.wiring.irqfds == {}
    assert world.wiring.tables == 1


def test_table_is_written_for_what_an_eventfd_sends_on_only(world: World, fds: list[int]) -> None:
    channel, other = world.channel(0x40), world.channel(0x41)
    world.events.connect([(channel, fds[0])])
    bind(world, other, 0x50)
    bind(world, channel, 0x40)  # the message that it has
    assert world.events.reroutes == 1
    bind(world, channel, 0x60)
    assert world.events.reroutes == 2
    assert world.wiring.routes == [(channel, MESSAGE, 0x60)]


def test_channel_that_is_bound_late_is_routed_then(world: World, fds: list[int]) -> None:
    channel = world.call(abi.HC_EVTCHN_ALLOC)
    assert channel is not None
    world.events.connect([(channel, fds[0]), (77, fds[1])])
    assert world.wiring.routes == []
    assert world.wiring.irqfds == {fds[0]: channel}
    bind(world, channel, 0x40)
    assert world.wiring.routes == [(channel, MESSAGE, 0x40)]


def test_closed_channel_is_disconnected(world: World, fds: list[int]) -> None:
    channel = world.channel(0x40)
    world.events.connect([(channel, fds[0])])
    assert world.call(abi.HC_EVTCHN_CLOSE, channel) == 0
    assert world.wiring.irqfds == {}
    world.events.disconnect(fds)  # its device has not heard yet
    assert world.channel(0x41) == channel
    world.events.connect([(channel, fds[1])])
    assert world.wiring.routes == [(channel, MESSAGE, 0x41)]


def test_queues_that_share_a_channel_are_one_route(world: World, fds: list[int]) -> None:
    channel = world.channel(0x40)
    world.events.connect([(channel, fds[0]), (channel, fds[1])])
    assert world.wiring.routes == [(channel, MESSAGE, 0x40)]
    assert world.wiring.irqfds == {fds[0]: channel, fds[1]: channel}
    world.events.disconnect(fds[:1])
    bind(world, channel, 0x50)
    assert world.wiring.routes == [(channel, MESSAGE, 0x50)]
    assert world.call(abi.HC_EVTCHN_CLOSE, channel) == 0
    assert world.wiring.irqfds == {}


def test_what_kvm_refuses_is_not_connected(
    world: World, fds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    channels = [world.channel(0x40), world.channel(0x41)]
    working = world.wiring.irqfd

    def irqfd(fd: int, gsi: int, *, on: bool) -> None:
        if fd == fds[1] and on:
            raise KvmError("irqfd", 28)
        working(fd, gsi, on=on)

    monkeypatch.setattr(world.wiring, "irqfd", irqfd)
    with pytest.raises(KvmError):
        world.events.connect(list(zip(channels, fds, strict=False)))
    world.events.disconnect(fds)
    assert world.wiring.irqfds == {}


def test_guest_that_moves_its_interrupts_for_ever_is_slowed_down(
    world: World, fds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = world.channel(0x40)
    world.events.connect([(channel, fds[0])])
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    for number in range(events.REBINDS):
        assert bind(world, channel, 0x40 + number % 2 + 1) == 0
    assert slept == []
    for number in range(events.REBINDS):
        assert bind(world, channel, 0x40 + number % 2 + 1) == 0
    assert 0 < len(slept) <= events.REBINDS
    assert 0.01 < max(slept) <= 0.1
