"""A guest's registers and records may hold anything: a handler answers, and never raises."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvmpv import abi
from tests.unit.hypercall.world import RAM, World

ERRORS = {value for name, value in vars(abi).items() if name.startswith("E") and name.isalpha()}
with World() as example:
    CALLS = sorted(example.table)

REGISTER = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.sampled_from([0, 1, 2, abi.NO_CHANNEL, RAM - 1, RAM, RAM - 64, 1 << 32, (1 << 64) - 1]),
    st.integers(0, 0x9000),
    st.integers(0, abi.MAX_BUFFER + 1),
)
CALL = st.tuples(st.sampled_from(CALLS), st.lists(REGISTER, min_size=5, max_size=5))
# Memory that looks like a record more often than chance would have it.
RECORD = st.builds(
    lambda version, size, rest: version.to_bytes(2, "little") + size.to_bytes(2, "little") + rest,
    st.sampled_from([0, 1, 2]),
    st.sampled_from([0, 8, 16, 24, 40, 48, 72, 80, 448, 65535]),
    st.binary(max_size=200),
)


@given(RECORD, st.integers(0, RAM - 300), st.lists(CALL, max_size=20))
def test_every_call_answers_with_a_number_or_does_not_return(
    record: bytes, at: int, calls: list[tuple[int, list[int]]]
) -> None:
    with World() as world:
        world.memory.write(at, record)
        for number, registers in calls:
            used = [at if value == 2 else value for value in registers]
            result = world.call(number, *used)
            if result is None:
                assert len(world.ends) > 0
            else:
                assert -200 < result < 1 << 63
                assert result >= 0 or -result in ERRORS
        assert len(world.ports.last) <= 3 * abi.MAX_BUFFER


@given(st.lists(st.tuples(REGISTER, REGISTER, REGISTER), max_size=10), st.booleans())
def test_host_may_hang_up_at_any_time(calls: list[tuple[int, int, int]], before: bool) -> None:
    with World() as world:
        for number, stream in enumerate(world.streams):
            if before:
                stream.close()
            for address, length, _ in calls:
                for call in (abi.HC_PORT_WRITE, abi.HC_PORT_READ):
                    result = world.call(call, number, address % RAM, length % 5000)
                    assert result is not None
                stream.close()
            assert world.call(abi.HC_PORT_CLOSE, number) == 0


VIRTIO = [number for number in CALLS if number & 0xF0 == 0x60]
STATUS = st.sampled_from([0, 1, 3, 11, 15, 64, 79, 128, 1 << 32])
DEVICE = st.sampled_from([0, 0, 0, 1, 1, 2, 47, 48, (1 << 64) - 1])
ADDRESS = st.sampled_from([0x1000, 0x2000, 0x3000, 0x3002, 0x8, RAM, (1 << 64) - 8])
QUEUE = st.builds(
    lambda index, size, channel, *parts: abi.VIRTIO_QUEUE.pack(
        1, abi.VIRTIO_QUEUE.size, index, size, channel, 0, *parts
    ),
    st.sampled_from([0, 1, 2, 3, 65535]),
    st.sampled_from([0, 1, 2, 3, 64, 256, 32768, 65535]),
    st.sampled_from([0, 1, abi.NO_CHANNEL]),
    *[ADDRESS] * 3,
)
FEATURES = st.sampled_from([0, 3 << 32, 3 << 32 | 0xFFFF, (1 << 64) - 1])
DEED = st.one_of(
    st.tuples(st.just(abi.HC_VIRTIO_STATUS), DEVICE, STATUS, FEATURES),
    st.tuples(st.just(abi.HC_VIRTIO_QUEUE), DEVICE, st.just(0x4000), st.just(0)),
    st.tuples(st.sampled_from(VIRTIO), DEVICE, REGISTER, REGISTER),
    st.tuples(st.just(abi.HC_VIRTIO_OPEN), DEVICE, st.just(0x5000), st.just(0)),
    st.tuples(st.just(abi.HC_EVTCHN_CLOSE), st.integers(0, 3), st.just(0), st.just(0)),
    st.tuples(st.just(abi.HC_EVTCHN_ALLOC), st.just(0), st.just(0), st.just(0)),
)


@given(st.lists(st.tuples(DEED, QUEUE, st.binary(max_size=64)), max_size=30))
def test_devices_answer_whatever_a_driver_does(
    deeds: list[tuple[tuple[int, int, int, int], bytes, bytes]],
) -> None:
    with World() as world:
        world.add_device(0, "blk", queues="2")
        world.add_device(1, "net", mac="52:54:00:00:00:01", queues="1")
        page = abi.VIRTIO_PAGE.pack(1, abi.VIRTIO_PAGE.size, *[0] * 8, b"", b"", b"")
        for (number, *registers), queue, junk in deeds:
            world.memory.write(0x4000, queue)
            world.memory.write(0x5000, page[:8])
            world.memory.write(0x2000, junk)
            result = world.call(number, *registers)
            assert result is not None
            assert result >= 0 or -result in ERRORS
            world.host.turn()
            used = [q for device in world.devices.values() for q in device.queues if q.connected]
            assert len(world.wiring.doorbells) == len(used)
            assert set(world.wiring.irqfds) <= {queue.call for queue in used}
        for number in (0, 1):
            world.call(abi.HC_VIRTIO_STATUS, number, 0, 0)
            world.call(abi.HC_VIRTIO_CLOSE, number)
        assert not world.wiring.doorbells
        assert not world.wiring.irqfds
        assert world.host.crashes == []
