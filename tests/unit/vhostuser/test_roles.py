"""Both roles against each other: what a front end says is what a device is told."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

from kvmpv.errors import VhostUserError
from kvmpv.vhostuser import message, shared
from kvmpv.vhostuser.backend import Session
from kvmpv.vhostuser.frontend import Frontend
from tests.unit.vhostuser.peer import MIB, USER, VERSION_1, Recorder, memfd, pair, raw

if TYPE_CHECKING:
    from collections.abc import Iterator


class Both:
    """A front end here, and a session served by a thread."""

    def __init__(self) -> None:
        ours, theirs = pair()
        self.device = Recorder()
        self.session = Session(raw(theirs), self.device)
        self.frontend = Frontend(raw(ours), 5)
        self.over: VhostUserError | None = None
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self) -> None:
        import select

        poll = select.poll()
        poll.register(self.session.fileno(), select.POLLIN)
        try:
            while True:
                poll.poll()
                self.session.ready()
        except VhostUserError as error:
            self.over = error
        self.session.close()

    def close(self) -> None:
        self.frontend.close()
        self.thread.join(5)


@pytest.fixture
def both() -> Iterator[Both]:
    made = Both()
    yield made
    made.close()


def start(
    both: Both, queues: int = 1, base: int = 5, *, negotiate: bool = True
) -> tuple[int, list[int]]:
    """Bring a device up as a VMM does; return the memory and the kicks."""
    frontend = both.frontend
    if negotiate:
        frontend.negotiate(message.PF_KNOWN & ~message.PF_STATUS)
    frontend.set_features(VERSION_1 | message.F_PROTOCOL_FEATURES)
    memory = memfd(2 * MIB)
    frontend.set_mem_table([(0, MIB, USER, 0, memory), (1 << 32, MIB, USER + MIB, MIB, memory)])
    kicks = []
    for index in range(queues):
        at = USER + MIB + index * 0x10000
        frontend.set_vring_num(index, 64)
        frontend.set_vring_base(index, base)
        frontend.set_vring_addr(index, at, at + 0x4000, at + 0x8000)
        kicks.append(os.eventfd(0))
        frontend.set_vring_call(index, kicks[-1])
        frontend.set_vring_kick(index, kicks[-1])
        frontend.set_vring_enable(index, True)
    return memory, kicks


def test_a_device_comes_up_and_goes_down(both: Both) -> None:
    memory, kicks = start(both, queues=2)
    both.frontend.get_queue_num()
    expected: list[tuple[object, ...]] = [
        ("features", VERSION_1),
        ("memory", 2),
        *[("start", 0, 5, False), ("enabled", 0, True)],
        *[("start", 1, 5, False), ("enabled", 1, True)],
    ]
    assert both.device.calls == expected
    vring = both.device.running[1]
    upper = both.device.regions[1]
    assert (vring.num, vring.desc) == (64, upper.address + 0x10000)
    assert (vring.used, vring.avail) == (vring.desc + 0x4000, vring.desc + 0x8000)
    os.pwrite(memory, b"seen", MIB + 0x10000)
    assert bytes(upper.view[0x10000:0x10004]) == b"seen"
    assert both.frontend.get_vring_base(1) == 12
    assert both.device.calls.pop() == ("stop", 1)
    both.close()
    assert not both.device.running
    assert both.device.calls.pop() == ("disconnected",)
    assert both.over is not None
    assert both.over.gone
    for fd in (memory, *kicks):
        os.close(fd)


def test_the_status_is_taken_by_none_who_does_not_tell_it(both: Both) -> None:
    """DPDK's back ends start no ring before DRIVER_OK where it was negotiated."""
    both.session.offered |= message.PF_STATUS
    both.frontend.negotiate()
    both.frontend.get_queue_num()
    assert not both.session.protocol_features & message.PF_STATUS
    both.frontend.negotiate(message.PF_KNOWN)
    both.frontend.set_status(4)
    assert both.frontend.get_status() == 4


def test_config_is_read_and_written(both: Both) -> None:
    both.frontend.negotiate()
    assert both.frontend.get_queue_num() == 4
    assert both.frontend.get_config(4, 8) == b"456789ab"
    assert both.frontend.get_config(12, 8) == b"cdef\0\0\0\0"
    both.frontend.set_config(1, b"xy")
    assert both.frontend.get_config(0, 4) == b"0xy3"
    both.frontend.set_mtu(1400)
    assert both.device.calls == [("mtu", 1400)]


def test_a_refusal_is_told(both: Both) -> None:
    both.frontend.negotiate()
    with pytest.raises(VhostUserError, match="refuses request 25"):
        both.frontend.set_config(200, b"xy")


def test_the_front_end_hears_of_changed_config(both: Both) -> None:
    both.frontend.negotiate()
    heard: list[int] = []
    channel = both.frontend.back_channel(lambda: heard.append(1))
    both.session.config_changed()
    both.session.config_changed()
    assert channel.ready()
    assert heard == [1, 1]
    both.close()
    assert not channel.ready()
    channel.close()


def test_the_log_of_requests_in_flight_goes_round(both: Both) -> None:
    both.frontend.negotiate()
    fd, size, offset = both.frontend.get_inflight_fd(2, 128)
    assert (size, offset) == (2 * message.inflight_queue_size(128), 0)
    assert shared.seals(fd) & shared.SEALS == shared.SEALS
    both.frontend.set_inflight_fd(fd, size, offset, 2, 128)
    address, *rest = both.device.inflight
    assert rest == [size, 2, 128]
    memory, kicks = start(both, queues=2, negotiate=False)
    part = message.inflight_queue_size(128)
    assert [both.device.running[i].inflight for i in (0, 1)] == [address, address + part]
    for one in (fd, memory, *kicks):
        os.close(one)


def test_memory_comes_and_goes_by_region(both: Both) -> None:
    memory, kicks = start(both)
    frontend = both.frontend
    assert frontend.get_max_mem_slots() == message.SLOTS_MAX
    more = memfd(MIB)
    frontend.add_mem_region(1 << 33, MIB, USER + 4 * MIB, 0, more)
    assert both.device.calls[-3:] == [("stop", 0), ("memory", 3), ("start", 0, 12, True)]
    frontend.remove_mem_region(1 << 33, MIB, USER + 4 * MIB)
    assert both.device.calls[-2:] == [("memory", 2), ("start", 0, 19, True)]
    for one in (memory, more, *kicks):
        os.close(one)


def test_memory_that_is_shared_twice_is_taken_back_twice(both: Both) -> None:
    """As QEMU 7.2 does for a card with two pairs of queues."""
    memory, kicks = start(both)
    frontend = both.frontend
    region = (1 << 33, MIB, USER + 4 * MIB)
    more = memfd(MIB)
    for _ in range(2):
        frontend.add_mem_region(*region, 0, more)
    calls = list(both.device.calls)
    assert len(both.device.regions) == 3
    frontend.remove_mem_region(*region)
    assert both.device.calls == calls
    frontend.remove_mem_region(*region)
    assert both.device.calls[-2:] == [("memory", 2), ("start", 0, 19, True)]
    with pytest.raises(VhostUserError, match="refuses request 38"):
        frontend.remove_mem_region(*region)
    for one in (memory, more, *kicks):
        os.close(one)


def test_other_memory_at_a_region_that_is_there_is_refused(both: Both) -> None:
    memory, kicks = start(both)
    other = memfd(2 * MIB)
    with pytest.raises(VhostUserError, match="refuses request 37"):
        both.frontend.add_mem_region(0, MIB, USER, 0, other)
    for one in (memory, other, *kicks):
        os.close(one)


def test_another_call_comes_under_the_same_number(both: Both) -> None:
    memory, kicks = start(both)
    number = both.device.running[0].call
    other = os.eventfd(0, os.EFD_NONBLOCK)
    both.frontend.set_vring_call(0, other)
    assert both.device.running[0].call == number
    os.eventfd_write(number, 3)
    assert os.eventfd_read(other) == 3
    both.frontend.set_vring_call(0, -1)
    os.eventfd_write(number, 3)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(other)
    for one in (memory, other, *kicks):
        os.close(one)


def test_the_dirty_log_reaches_the_device(both: Both) -> None:
    both.frontend.negotiate()
    log, event = memfd(8192), os.eventfd(0)
    both.frontend.set_log_fd(event)
    both.frontend.set_log_base(log, 4096, 4096)
    address, size, told = both.device.log
    assert address
    assert size == 4096
    os.eventfd_write(told, 1)
    assert os.eventfd_read(event) == 1
    for one in (log, event):
        os.close(one)


def test_a_reset_stops_and_forgets(both: Both) -> None:
    memory, kicks = start(both)
    both.frontend.reset_device()
    assert both.device.calls[-3:] == [("stop", 0), ("enabled", 0, False), ("reset",)]
    with pytest.raises(VhostUserError, match="refuses request 12"):
        both.frontend.set_vring_kick(0, kicks[0])
    for one in (memory, *kicks):
        os.close(one)


def test_the_next_owner_on_a_connection_begins_anew(both: Both) -> None:
    """As QEMU does for the next device that is given the chardev of one that was unplugged."""
    memory, kicks = start(both)
    both.frontend.get_vring_base(0)
    both.frontend.set_owner()
    assert both.device.calls[-2:] == [("memory", 0), ("reset",)]
    both.frontend.add_mem_region(0, MIB, USER, 0, memory)
    assert both.device.calls[-1] == ("memory", 1)
    for one in (memory, *kicks):
        os.close(one)


def test_without_protocol_features_all_rings_are_enabled(both: Both) -> None:
    both.frontend.set_features(VERSION_1)
    both.frontend.get_features()
    assert [call for call in both.device.calls if call[0] == "enabled"] == [
        ("enabled", index, True) for index in range(4)
    ]


def test_a_back_end_that_does_not_answer_is_given_up() -> None:
    ours, theirs = pair()
    frontend = Frontend(raw(ours), 0.01)
    with pytest.raises(VhostUserError, match="does not answer") as caught:
        frontend.get_features()
    assert not caught.value.gone
    theirs.close()
    with pytest.raises(VhostUserError) as caught:
        frontend.get_features()
    assert caught.value.gone
    frontend.close()
