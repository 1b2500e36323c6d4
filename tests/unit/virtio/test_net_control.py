"""The control queue of a network: what drivers ask of it, and what hostile ones do."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpv import memory
from kvmpv.virtio import models, spec
from kvmpv.virtio.net_control import NetControl
from kvmpv.virtio.queue import Queue

if TYPE_CHECKING:
    from collections.abc import Iterator

RAM = 1 << 16
SIZE = 8
DESC, AVAIL, USED, REQUEST, ANSWER = 0, 0x400, 0x800, 0x1000, 0x3000
ALL = (1 << 64) - 1
MQ, MAC, RX = spec.NET_CTRL_MQ, spec.NET_CTRL_MAC, spec.NET_CTRL_RX


class Driver:
    """A driver of the queue, and what became of its wishes."""

    def __init__(self, features: int = ALL) -> None:
        self.fd = memory.create_memfd("test", RAM)
        self.memory = memory.map_regions([(0, RAM, self.fd, 0)])
        model = models.model("net", {"mac": "52:54:00:00:00:01", "queues": "4"})
        assert isinstance(model, models.Net)
        self.model = model
        self.pairs: list[int] = []
        self.queue = Queue(8, SIZE)
        self.queue.size = SIZE
        self.queue.descriptors, self.queue.available, self.queue.used = DESC, AVAIL, USED
        self.queue.open()
        accepted = self.model.offered(0) & features & ~(1 << spec.F_EVENT_IDX)
        self.control = NetControl(self.model, self.memory, self.queue, accepted, self._enable)
        self.asked = 0

    def _enable(self, pairs: int) -> bool:
        self.pairs.append(pairs)
        return True

    def put(self, index: int, address: int, length: int, flags: int, following: int) -> None:
        self.memory.write(DESC + 16 * index, spec.DESC.pack(address, length, flags, following))

    def offer(self, head: int) -> None:
        self.memory.write(AVAIL + 4 + 2 * (self.asked % SIZE), head.to_bytes(2, "little"))
        self.asked += 1
        self.memory.write(AVAIL + 2, (self.asked & 0xFFFF).to_bytes(2, "little"))

    def ask(self, group: int, command: int, data: bytes = b"") -> int:
        """Make a request; return its answer: NET_OK or NET_ERR."""
        request = bytes([group, command]) + data
        self.memory.write(REQUEST, request)
        self.memory.write(ANSWER, b"\xff")
        self.put(0, REQUEST, len(request), spec.DESC_F_NEXT, 1)
        self.put(1, ANSWER, 1, spec.DESC_F_WRITE, 0)
        self.offer(0)
        os.eventfd_write(self.queue.kick, 1)
        assert self.control.serve()
        used = self.memory.slice(USED, 4)
        answer = self.memory.slice(ANSWER, 1)
        assert used is not None
        assert answer is not None
        assert int.from_bytes(used[2:4], "little") == self.asked & 0xFFFF
        assert os.eventfd_read(self.queue.call) >= 1
        return answer[0]

    def close(self) -> None:
        self.queue.forget()
        self.memory.close()
        os.close(self.fd)


@pytest.fixture
def driver() -> Iterator[Driver]:
    made = Driver()
    yield made
    made.close()


def test_pairs_are_enabled(driver: Driver) -> None:
    for pairs in (1, 4, 2):
        assert driver.ask(MQ, 0, pairs.to_bytes(2, "little")) == spec.NET_OK
    assert driver.pairs == [1, 4, 2]


@pytest.mark.parametrize("data", [b"", b"\1", b"\0\0", b"\5\0", b"\xff\xff"])
def test_pairs_that_are_not_there_are_refused(driver: Driver, data: bytes) -> None:
    assert driver.ask(MQ, 0, data) == spec.NET_ERR
    assert driver.pairs == []


def test_address_changes_until_a_reset(driver: Driver) -> None:
    assert driver.ask(MAC, spec.NET_CTRL_MAC_ADDR_SET, b"\x02\0\0\0\0\7") == spec.NET_OK
    assert driver.model.config[:6] == b"\x02\0\0\0\0\7"
    driver.model.reset()
    assert driver.model.config[:6] == bytes.fromhex("525400000001")
    assert driver.ask(MAC, spec.NET_CTRL_MAC_ADDR_SET, b"\x02") == spec.NET_ERR
    assert driver.ask(MAC, spec.NET_CTRL_MAC_TABLE_SET, bytes(8)) == spec.NET_OK


def test_receive_mode_is_kept(driver: Driver) -> None:
    assert driver.ask(RX, spec.NET_CTRL_RX_PROMISC, b"\1") == spec.NET_OK
    assert driver.ask(RX, spec.NET_CTRL_RX_ALLMULTI, b"\0") == spec.NET_OK
    assert driver.ask(RX, 77, b"\0") == spec.NET_ERR
    assert driver.control.receive_mode == {0: 1, 1: 0}


def test_driver_is_asked_to_announce_itself_until_it_has(driver: Driver) -> None:
    def status() -> int:
        return int(spec.NET_CONFIG.unpack(driver.model.config)[1])

    announce = spec.NET_S_LINK_UP | spec.NET_S_ANNOUNCE
    for done in (
        lambda: driver.ask(spec.NET_CTRL_ANNOUNCE, spec.NET_CTRL_ANNOUNCE_ACK),
        driver.model.reset,
    ):
        assert driver.model.handed_over(1 << spec.NET_F_GUEST_ANNOUNCE)
        assert status() == announce
        assert driver.ask(spec.NET_CTRL_ANNOUNCE, 77) == spec.NET_ERR
        assert status() == announce
        done()
        assert status() == spec.NET_S_LINK_UP
    assert not driver.model.handed_over(0)
    assert status() == spec.NET_S_LINK_UP


def test_what_was_not_accepted_is_refused() -> None:
    driver = Driver(spec.mask(spec.F_VERSION_1, spec.NET_F_CTRL_VQ))
    assert driver.ask(MQ, 0, b"\1\0") == spec.NET_ERR
    assert driver.ask(MAC, spec.NET_CTRL_MAC_ADDR_SET, bytes(6)) == spec.NET_ERR
    assert driver.ask(RX, spec.NET_CTRL_RX_PROMISC, b"\1") == spec.NET_ERR
    assert driver.ask(spec.NET_CTRL_ANNOUNCE, spec.NET_CTRL_ANNOUNCE_ACK) == spec.NET_ERR
    driver.close()


@given(st.integers(0, 255), st.integers(0, 255), st.binary(max_size=300))
def test_any_request_is_answered(group: int, command: int, data: bytes) -> None:
    driver = Driver()
    assert driver.ask(group, command, data) in (spec.NET_OK, spec.NET_ERR)
    driver.close()


@given(
    st.lists(
        st.tuples(
            st.integers(0, SIZE + 1),
            st.sampled_from([0, REQUEST, ANSWER, RAM - 1, RAM, ALL]),
            st.sampled_from([0, 1, 2, 300, RAM, 0xFFFFFFFF]),
            st.integers(0, 7),
            st.integers(0, SIZE + 1),
        ),
        max_size=10,
    ),
    st.integers(0, 65535),
)
def test_junk_breaks_the_queue_and_nothing_else(
    table: list[tuple[int, int, int, int, int]], jump: int
) -> None:
    driver = Driver()
    for index, address, length, flags, following in table:
        driver.put(min(index, SIZE - 1), address, length, flags, following)
        driver.offer(index)
    driver.memory.write(AVAIL + 2, jump.to_bytes(2, "little"))
    assert driver.control.serve() in (True, False)
    driver.close()
