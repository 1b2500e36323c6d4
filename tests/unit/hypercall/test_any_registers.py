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
    st.sampled_from([0, 8, 16, 24, 48, 72, 80, 65535]),
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
