"""The compiled ring does what the reference does, whatever a driver puts into memory."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmpv.dataplane import ring as compiled_module
from kvmpv.dataplane.ring import Ring, RingBroken
from kvmpv.virtio import ring as reference_module
from kvmpv.virtio.ring import DeviceRing
from tests.unit.dataplane import guest as layout
from tests.unit.dataplane.guest import AVAIL, LOG, PAGE, SIZE, Guest

INDIRECT_DESC, EVENT_IDX = 1 << 28, 1 << 29
TABLES = (0x1000, 0x2008, 0x2FF0, 0x3000, 1 << 32)

ADDRESS = st.one_of(
    st.sampled_from([*TABLES, 0x1F00, 0x2FFF, 0x4FFF, 0x5000, (1 << 32) + PAGE - 1]),
    st.integers(0, 0x5100),
    st.integers((1 << 64) - 64, (1 << 64) - 1),
    st.integers(0, (1 << 64) - 1),
)
LENGTH = st.one_of(
    st.sampled_from([16, 32, 128, 512, PAGE, 2 * PAGE]),
    st.integers(0, 600),
    st.integers(0, (1 << 32) - 1),
)
FLAGS = st.one_of(st.sampled_from([0, 1, 2, 3, 4, 5]), st.integers(0, 7), st.integers(0, 0xFFFF))
INDEX = st.one_of(st.integers(0, SIZE), st.integers(0, 0xFFFF))
DESCRIPTOR = st.tuples(ADDRESS, LENGTH, FLAGS, INDEX)
ACTION = st.one_of(
    st.tuples(st.just("describe"), st.integers(0, SIZE - 1), DESCRIPTOR),
    st.tuples(st.just("table"), st.sampled_from(TABLES), st.lists(DESCRIPTOR, max_size=5)),
    st.tuples(st.just("offer"), st.integers(0, SIZE - 1), INDEX),
    st.tuples(st.just("more"), st.integers(0, SIZE)),
    st.tuples(st.just("index"), st.integers(0, 0xFFFF)),
    st.tuples(st.just("event"), st.integers(0, 0xFFFF)),
    st.tuples(st.just("flags"), st.integers(0, 3)),
    st.tuples(st.just("spoil"), st.integers(0, 8 + 16 * SIZE), st.integers(0, 255)),
    *[st.tuples(st.just(name)) for name in ("pop", "pop", "pop", "push", "publish")],
    *[st.tuples(st.just(name)) for name in ("enable", "disable", "unpop", "restart")],
)


class Side:
    """One ring over one guest's memory, and what was taken from it."""

    def __init__(self, features: int, base: int, *, log: bool) -> None:
        self.guest = Guest()
        self.features = features
        self.log = log
        self.taken: list[int] = []
        self.offered = base
        self.guest.put(layout.USED + 2, base.to_bytes(2, "little"))
        self.guest.avail_index(base)
        self.open(base)

    def open(self, base: int) -> None:
        """Begin anew, as a successor does."""
        raise NotImplementedError

    def pop(self) -> object:
        """Take a chain; return all there is to know of it."""
        raise NotImplementedError

    ring: Ring | DeviceRing

    def act(self, action: tuple[object, ...]) -> object:
        """Do one thing; return what came of it."""
        name, *rest = action
        return getattr(self, f"do_{name}")(*rest)

    def do_describe(self, index: int, desc: tuple[int, int, int, int]) -> None:
        self.guest.describe(index, *desc)

    def do_table(self, gpa: int, descs: list[tuple[int, int, int, int]]) -> None:
        for index, desc in enumerate(descs):
            if gpa != 0x2FF0 or not index:
                self.guest.describe(index, *desc, at=gpa)

    def do_offer(self, slot: int, head: int) -> None:
        self.guest.offer(slot, head)

    def do_more(self, count: int) -> None:
        self.offered = (self.offered + count) & 0xFFFF
        self.guest.avail_index(self.offered)

    def do_index(self, index: int) -> None:
        self.offered = index
        self.guest.avail_index(index)

    def do_event(self, index: int) -> None:
        self.guest.put(AVAIL + 4 + 2 * SIZE, index.to_bytes(2, "little"))

    def do_flags(self, flags: int) -> None:
        self.guest.put(AVAIL, flags.to_bytes(2, "little"))

    def do_spoil(self, at: int, value: int) -> None:
        self.guest.memory[LOG + 8 + at] = value

    def do_pop(self) -> object:
        try:
            return self.pop()
        except (RingBroken, reference_module.RingBroken) as broken:
            return str(broken)

    def do_push(self) -> None:
        if self.taken:
            self.ring.push(self.taken.pop(0), 17)

    def do_publish(self) -> object:
        return self.ring.publish(), self.ring.fault

    def do_enable(self) -> object:
        return self.ring.enable_kicks(), self.ring.fault

    def do_disable(self) -> None:
        self.ring.disable_kicks()

    def do_unpop(self) -> None:
        if self.taken and not self.ring.fault:
            self.ring.unpop(self.taken.pop())

    def do_restart(self) -> object:
        base = self.ring.next_avail
        self.open(base)
        self.taken = list(self.ring.recovered) if self.log else []
        return self.taken, self.ring.next_avail, self.ring.fault


class Compiled(Side):
    def open(self, base: int) -> None:
        self.ring = self.guest.compiled(self.features, base, self.log)

    def pop(self) -> object:
        assert isinstance(self.ring, Ring)
        chain = self.ring.pop()
        if chain is None:
            return None
        head, readable, writable = chain
        self.taken.append(head)
        base = self.guest.base
        places = [[(at - base, size) for at, size in part] for part in (readable, writable)]
        return head, places


class Reference(Side):
    def open(self, base: int) -> None:
        self.ring = self.guest.reference(self.features, base, self.log)

    def pop(self) -> object:
        assert isinstance(self.ring, DeviceRing)
        chain = self.ring.pop()
        if chain is None:
            return None
        self.taken.append(chain.head)
        base = self.guest.base
        parts = (self.guest.offsets(part) for part in (chain.readable, chain.writable))
        return chain.head, [[(at - base, size) for at, size in part] for part in parts]


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.integers(0, SIZE - 1), DESCRIPTOR), max_size=SIZE),
    st.lists(ACTION, max_size=40),
    st.sampled_from([0, INDIRECT_DESC, EVENT_IDX, INDIRECT_DESC | EVENT_IDX]),
    st.sampled_from([0, 1, 0xFFFC]),
    st.booleans(),
)
def test_compiled_ring_and_reference_agree_on_junk(
    descs: list[tuple[int, tuple[int, int, int, int]]],
    actions: list[tuple[object, ...]],
    features: int,
    base: int,
    log: bool,
) -> None:
    ours, oracle = Compiled(features, base, log=log), Reference(features, base, log=log)
    for side in (ours, oracle):
        for slot in range(SIZE):
            side.guest.offer(slot, slot)
        for index, desc in descs:
            side.guest.describe(index, *desc)
    for action in actions:
        assert ours.act(action) == oracle.act(action), action
    assert bytes(ours.guest.memory) == bytes(oracle.guest.memory)


def test_both_name_faults_alike() -> None:
    assert compiled_module.fault_texts() == list(reference_module.FAULTS)


def test_both_size_the_log_alike() -> None:
    for size in (1, 2, 128, 256, 32768):
        assert compiled_module.log_bytes(size) == reference_module.log_bytes(size)
