"""The ring, both ways it is written: chains, what a driver may not do, signals, in-flight log."""

from __future__ import annotations

import struct

import pytest

from kvmpv.dataplane.ring import Ring
from kvmpv.dataplane.ring import RingBroken as CompiledBroken
from kvmpv.virtio.ring import DeviceRing, RingBroken
from tests.unit.dataplane.guest import AVAIL, INDIRECT, LOG, NEXT, PAGE, USED, WRITE, Guest

BROKEN = (CompiledBroken, RingBroken)
INDIRECT_DESC, EVENT_IDX = 1 << 28, 1 << 29
DATA, TABLE, HIGH = 0x1000, 0x2000, 1 << 32


class Device:
    """Either ring, with chains as lists of (offset in the guest's file, length)."""

    def __init__(self, guest: Guest, kind: str, features: int = 0, *, log: bool = False) -> None:
        self.guest = guest
        self.ring: Ring | DeviceRing
        self.ring = (guest.compiled if kind == "compiled" else guest.reference)(features, log=log)

    def _place(self, chain: object) -> tuple[int, list[tuple[int, int]], list[tuple[int, int]]]:
        if isinstance(chain, tuple):
            head, readable, writable = chain
        else:
            head = chain.head  # type: ignore[attr-defined]
            readable = self.guest.offsets(chain.readable)  # type: ignore[attr-defined]
            writable = self.guest.offsets(chain.writable)  # type: ignore[attr-defined]
        base = self.guest.base
        return head, [(at - base, n) for at, n in readable], [(at - base, n) for at, n in writable]

    def pop(self) -> tuple[int, list[tuple[int, int]], list[tuple[int, int]]]:
        chain = self.ring.pop()
        assert chain is not None
        return self._place(chain)

    def finish(self, *heads: int) -> bool:
        for head in heads:
            self.ring.push(head, 1)
        return self.ring.publish()


@pytest.fixture(params=["compiled", "reference"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def guest() -> Guest:
    return Guest()


def test_empty_ring_gives_nothing(guest: Guest, kind: str) -> None:
    assert Device(guest, kind).ring.pop() is None


def test_chain_comes_in_order_readable_first(guest: Guest, kind: str) -> None:
    guest.describe(3, DATA, 16, NEXT, 1)
    guest.describe(1, DATA + 512, 512, NEXT | WRITE, 0)
    guest.describe(0, HIGH, 1, WRITE)
    guest.make_available(3)
    readable, writable = [(DATA, 16)], [(DATA + 512, 512), (8 * PAGE, 1)]
    assert Device(guest, kind).pop() == (3, readable, writable)


def test_buffer_across_touching_regions_is_cut(guest: Guest, kind: str) -> None:
    guest.describe(0, 3 * PAGE - 100, 300, WRITE)
    guest.make_available(0)
    assert Device(guest, kind).pop()[2] == [(3 * PAGE - 100, 100), (5 * PAGE, 200)]


def test_indirect_chain_is_followed(guest: Guest, kind: str) -> None:
    guest.describe(2, TABLE, 32, INDIRECT)
    guest.describe(0, DATA, 16, NEXT, 1, at=TABLE)
    guest.describe(1, DATA, 32, WRITE, at=TABLE)
    guest.make_available(2)
    assert Device(guest, kind, INDIRECT_DESC).pop() == (2, [(DATA, 16)], [(DATA, 32)])


def test_indirect_chain_may_be_longer_than_the_queue(guest: Guest, kind: str) -> None:
    count = 3 * guest.size
    guest.describe(0, TABLE, 16 * count, INDIRECT)
    for index in range(count):
        guest.describe(index, DATA, 1, NEXT if index < count - 1 else 0, index + 1, at=TABLE)
    guest.make_available(0)
    assert len(Device(guest, kind, INDIRECT_DESC).pop()[1]) == count


def test_indices_wrap(guest: Guest, kind: str) -> None:
    guest.describe(0, DATA, 4, WRITE)
    device = Device(guest, kind)
    for turn in range(0x10000 + 20):
        guest.offer(turn, 0)
        guest.avail_index(turn + 1)
        assert device.ring.pop() is not None
        device.finish(0)
    assert guest.used_index() == 20


# ---- what a driver may not do


def bad_head(guest: Guest) -> None:
    guest.make_available(guest.size)


def jump(guest: Guest) -> None:
    guest.avail_index(guest.size + 1)


def loop(guest: Guest) -> None:
    guest.describe(0, DATA, 4, NEXT, 1)
    guest.describe(1, DATA, 4, NEXT, 0)
    guest.make_available(0)


def bad_next(guest: Guest) -> None:
    guest.describe(0, DATA, 4, NEXT, 99)
    guest.make_available(0)


def outside(guest: Guest) -> None:
    guest.describe(0, 5 * PAGE, 4)
    guest.make_available(0)


def half_outside(guest: Guest) -> None:
    guest.describe(0, 5 * PAGE - 4, 8)
    guest.make_available(0)


def wrapping(guest: Guest) -> None:
    guest.describe(0, (1 << 64) - 4, 8)
    guest.make_available(0)


def empty(guest: Guest) -> None:
    guest.describe(0, DATA, 0)
    guest.make_available(0)


def disordered(guest: Guest) -> None:
    guest.describe(0, DATA, 4, NEXT | WRITE, 1)
    guest.describe(1, DATA, 4)
    guest.make_available(0)


def table_outside(guest: Guest) -> None:
    guest.describe(0, 5 * PAGE - 16, 32, INDIRECT)
    guest.make_available(0)


def table_across_regions(guest: Guest) -> None:
    guest.describe(0, 3 * PAGE - 16, 32, INDIRECT)
    guest.make_available(0)


def table_odd(guest: Guest) -> None:
    guest.describe(0, TABLE, 24, INDIRECT)
    guest.make_available(0)


def table_too_long(guest: Guest) -> None:
    guest.describe(0, TABLE, 16 * 1025, INDIRECT)
    guest.make_available(0)


def table_loop(guest: Guest) -> None:
    guest.describe(0, TABLE, 32, INDIRECT)
    guest.describe(0, DATA, 4, NEXT, 0, at=TABLE)
    guest.make_available(0)


def nested(guest: Guest) -> None:
    guest.describe(0, TABLE, 32, INDIRECT)
    guest.describe(0, TABLE, 32, INDIRECT, at=TABLE)
    guest.make_available(0)


def indirect_in_chain(guest: Guest) -> None:
    guest.describe(0, DATA, 4, NEXT, 1)
    guest.describe(1, TABLE, 32, INDIRECT)
    guest.make_available(0)


def indirect_with_next(guest: Guest) -> None:
    guest.describe(0, TABLE, 32, INDIRECT | NEXT, 1)
    guest.make_available(0)


@pytest.mark.parametrize(
    ("crime", "fault"),
    [
        (bad_head, "descriptor out of range"),
        (jump, "available index jumps"),
        (loop, "chain loops"),
        (bad_next, "descriptor out of range"),
        (outside, "buffer outside memory"),
        (half_outside, "buffer outside memory"),
        (wrapping, "buffer outside memory"),
        (empty, "empty buffer"),
        (disordered, "readable behind writable"),
        (table_outside, "bad indirect table"),
        (table_across_regions, "bad indirect table"),
        (table_odd, "bad indirect table"),
        (table_too_long, "bad indirect table"),
        (table_loop, "chain loops"),
        (nested, "nested indirect table"),
        (indirect_in_chain, "nested indirect table"),
        (indirect_with_next, "nested indirect table"),
    ],
)
def test_crime_breaks_the_ring_for_good(guest: Guest, kind: str, crime, fault: str) -> None:
    crime(guest)
    device = Device(guest, kind, INDIRECT_DESC)
    before = bytes(guest.memory)
    for _ in range(2):
        with pytest.raises(BROKEN, match=fault):
            device.ring.pop()
        # Making amends does not help: the device waits for its reset.
        guest.describe(0, DATA, 4)
    guest.memory[: len(before)] = before
    assert bytes(guest.memory) == before


def test_indirect_table_unasked_for_is_refused(guest: Guest, kind: str) -> None:
    guest.describe(0, TABLE, 16, INDIRECT)
    guest.make_available(0)
    with pytest.raises(BROKEN, match="bad indirect table"):
        Device(guest, kind).ring.pop()


def test_no_more_is_in_flight_than_the_queue_holds(guest: Guest, kind: str) -> None:
    guest.describe(0, DATA, 4)
    device = Device(guest, kind)
    guest.make_available(*[0] * guest.size)
    for _ in range(guest.size):
        device.pop()
    guest.avail_index(guest.size + 1)
    with pytest.raises(BROKEN, match="available index jumps"):
        device.ring.pop()


# ---- signals


def test_without_event_index_the_flag_decides(guest: Guest, kind: str) -> None:
    guest.describe(0, DATA, 4)
    device = Device(guest, kind)
    guest.make_available(0, 0)
    device.pop()
    assert device.finish(0)
    guest.put(AVAIL, b"\1\0")
    device.pop()
    assert not device.finish(0)


def test_with_event_index_only_the_asked_for_entry_signals(guest: Guest, kind: str) -> None:
    guest.describe(0, DATA, 4)
    device = Device(guest, kind, EVENT_IDX)
    guest.make_available(*[0] * 5)
    signalled = []
    for _ in range(5):
        device.pop()
        guest.put(AVAIL + 4 + 2 * guest.size, b"\3\0")
        signalled.append(device.finish(0))
    # The first one always: what a predecessor said is not known.
    assert signalled == [True, False, False, True, False]


def test_nothing_given_back_signals_nothing(guest: Guest, kind: str) -> None:
    assert not Device(guest, kind, EVENT_IDX).ring.publish()


@pytest.mark.parametrize("features", [0, EVENT_IDX])
def test_asking_for_kicks_sees_what_came_meanwhile(guest: Guest, kind: str, features: int) -> None:
    guest.describe(0, DATA, 4)
    device = Device(guest, kind, features)
    device.ring.disable_kicks()
    assert not device.ring.enable_kicks()
    guest.make_available(0)
    assert device.ring.enable_kicks()


def test_kicks_are_suppressed_by_the_flag(guest: Guest, kind: str) -> None:
    device = Device(guest, kind)
    device.ring.disable_kicks()
    assert guest.word(USED) == 1
    device.ring.enable_kicks()
    assert guest.word(USED) == 0


def test_kick_is_asked_for_at_the_next_entry(guest: Guest, kind: str) -> None:
    guest.describe(0, DATA, 4)
    device = Device(guest, kind, EVENT_IDX)
    guest.make_available(0, 0)
    device.pop()
    device.pop()
    device.ring.enable_kicks()
    assert guest.word(USED + 4 + 8 * guest.size) == 2


def test_chain_put_back_comes_again(guest: Guest, kind: str) -> None:
    guest.describe(5, DATA, 4)
    guest.make_available(5)
    device = Device(guest, kind, log=True)
    head = device.pop()[0]
    device.ring.unpop(head)
    assert device.pop()[0] == 5


# ---- the in-flight log


def logged(guest: Guest, kind: str) -> Device:
    return Device(guest, kind, log=True)


def with_chains(guest: Guest, *heads: int) -> None:
    for head in range(guest.size):
        guest.describe(head, DATA + head, 4)
    guest.make_available(*heads)


def test_successor_finds_what_was_in_flight_in_the_order_it_was_taken(
    guest: Guest, kind: str
) -> None:
    with_chains(guest, 4, 2, 7, 1)
    first = logged(guest, kind)
    for _ in range(4):
        first.pop()
    first.finish(2)
    second = logged(guest, kind)
    assert second.ring.recovered == [4, 7, 1]
    assert second.ring.next_avail == 4


def test_successor_does_not_repeat_what_was_published(guest: Guest, kind: str) -> None:
    """Killed between the used index and the log: steps 5 and 6 of the protocol's document."""
    with_chains(guest, 0, 1, 2)
    first = logged(guest, kind)
    for _ in range(3):
        first.pop()
    for head in (1, 0):
        first.ring.push(head, 4)
    guest.put(USED + 2, b"\2\0")
    assert logged(guest, kind).ring.recovered == [2]


def test_successor_repeats_what_was_pushed_but_not_published(guest: Guest, kind: str) -> None:
    with_chains(guest, 0, 1)
    first = logged(guest, kind)
    first.pop()
    first.pop()
    first.ring.push(0, 4)
    assert logged(guest, kind).ring.recovered == [0, 1]


def test_retired_log_begins_anew(guest: Guest, kind: str) -> None:
    with_chains(guest, 0)
    first = logged(guest, kind)
    first.pop()
    first.finish(0)
    first.ring.retire_log()
    guest.put(USED + 2, b"\0\0")  # the driver has set its ring up again
    guest.avail_index(0)
    assert logged(guest, kind).ring.fault == 0


def test_head_in_flight_is_not_taken_again(guest: Guest, kind: str) -> None:
    with_chains(guest, 3, 3)
    device = logged(guest, kind)
    device.pop()
    with pytest.raises(BROKEN, match="in flight already"):
        device.ring.pop()


def test_log_of_another_size_is_refused(guest: Guest, kind: str) -> None:
    struct.pack_into("<QHH", guest.memory, LOG, 0, 1, 2 * guest.size)
    assert logged(guest, kind).ring.fault


@pytest.mark.parametrize("version", [2, 0xFFFF])
def test_log_of_another_version_is_refused(guest: Guest, kind: str, version: int) -> None:
    struct.pack_into("<QHH", guest.memory, LOG, 0, version, guest.size)
    assert logged(guest, kind).ring.fault


def test_log_whose_batch_leads_astray_is_refused(guest: Guest, kind: str) -> None:
    struct.pack_into("<QHHHH", guest.memory, LOG, 0, 1, guest.size, 0xFFFF, 0)
    guest.put(USED + 2, b"\1\0")
    assert logged(guest, kind).ring.fault
