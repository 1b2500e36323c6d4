"""Token buckets: what is let go, what waits and how long, and that no more goes in the long run."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvmpv.dataplane.block import Limits

SECOND = 1_000_000_000
START = 1 << 50


def limited(rate: int, burst: int) -> Limits:
    limits = Limits()
    limits.set_operations(rate, burst)
    return limits


def test_no_rate_is_no_limit() -> None:
    assert all(limited(0, 0).take_operations(START, 1 << 40) == 0 for _ in range(10))


def test_burst_goes_at_once_and_then_the_rate_holds() -> None:
    limits = limited(100, 5)
    assert [limits.take_operations(START, 1) for _ in range(5)] == [0] * 5
    wait = limits.take_operations(START, 1)
    assert 0 < wait <= SECOND // 100 + 1
    assert limits.take_operations(START + wait, 1) == 0
    assert limits.take_operations(START + wait, 1) > 0


def test_what_waited_does_not_cost() -> None:
    limits = limited(10, 1)
    limits.take_operations(START, 1)
    first = limits.take_operations(START, 1)
    assert all(limits.take_operations(START, 1) == first for _ in range(100))


def test_large_request_goes_and_is_owed_for() -> None:
    limits = limited(1000, 10)
    assert limits.take_operations(START, 5000) == 0
    wait = limits.take_operations(START, 1)
    assert 4.9 * SECOND < wait < 5 * SECOND


def test_bucket_fills_no_further_than_its_burst() -> None:
    limits = limited(100, 3)
    later = START + 3600 * SECOND
    assert [bool(limits.take_operations(later, 1)) for _ in range(4)] == [False] * 3 + [True]


def test_new_rate_holds_at_once() -> None:
    limits = limited(1, 1)
    limits.take_operations(START, 1)
    slow = limits.take_operations(START, 1)
    limits.set_operations(0, 0)
    assert slow > 0
    assert limits.take_operations(START, 1) == 0


@given(
    st.integers(1, 10**9),
    st.integers(1, 10**6),
    st.lists(st.tuples(st.integers(0, SECOND), st.integers(1, 10**6)), max_size=60),
)
def test_in_the_long_run_the_rate_is_kept(
    rate: int, burst: int, asks: list[tuple[int, int]]
) -> None:
    limits = limited(rate, burst)
    now, taken, largest = START, 0, 0
    for passed, tokens in asks:
        now += passed
        if limits.take_operations(now, tokens) == 0:
            taken += tokens
            largest = max(largest, tokens)
    assert taken <= burst + largest + rate * (now - START) / SECOND + len(asks) * rate / SECOND + 1
