"""A worker's loop, and the rate at which random numbers are given."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from kvmpv.dom0 import loop as module
from kvmpv.dom0.loop import Loop
from kvmpv.dom0.rng import TokenBucket

if TYPE_CHECKING:
    import pytest


def test_what_is_ready_is_called_and_no_more_once_unwatched() -> None:
    loop, fd = Loop(), os.eventfd(1)
    seen: list[int] = []
    loop.watch(fd, seen.append)
    loop.turn()
    loop.turn()
    assert len(seen) == 2
    loop.unwatch(fd)
    loop.call_at(0, lambda: None)
    loop.turn()
    assert len(seen) == 2
    os.close(fd)


def test_one_that_another_gave_up_in_the_same_turn_is_not_called() -> None:
    loop, fds = Loop(), [os.eventfd(1), os.eventfd(1)]
    seen: list[int] = []

    def first_wins(_events: int) -> None:
        seen.append(1)
        for fd in fds:
            loop.unwatch(fd)

    for fd in fds:
        loop.watch(fd, first_wins)
    loop.turn()
    assert seen == [1]
    for fd in fds:
        os.close(fd)


def test_moments_come_in_time_and_can_be_moved_or_forgotten() -> None:
    loop = Loop()
    seen: list[str] = []
    calls = {name: (lambda name=name: seen.append(name)) for name in ("soon", "moved", "never")}
    now = time.monotonic_ns()
    loop.call_at(now, calls["soon"])
    loop.call_at(now, calls["moved"])
    loop.call_at(now + 20_000_000, calls["moved"])
    loop.call_at(now, calls["never"])
    loop.forget(calls["never"])
    loop.turn()
    assert seen == ["soon"]
    loop.turn()
    assert seen == ["soon", "moved"]
    assert time.monotonic_ns() >= now + 20_000_000


def test_what_ends_its_rest_is_called_in_the_same_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, fd = Loop(), os.eventfd(0)
    seen: list[int] = []
    loop.watch(fd, seen.append)
    monkeypatch.setattr(module, "QUIET", 0.0)
    monkeypatch.setattr(module, "rest", lambda _epoll: os.eventfd_write(fd, 1))
    loop.turn()
    assert len(seen) == 1
    os.close(fd)


def test_it_does_not_rest_while_a_moment_is_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop()
    seen: list[bool] = []
    monkeypatch.setattr(module, "rest", lambda _epoll: seen.append(False))
    loop.call_at(time.monotonic_ns() + 1_000_000, lambda: seen.append(True))
    loop.turn()
    assert seen == [True]


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = TokenBucket(1000, 100)
    assert bucket.take(80) == 80
    assert bucket.take(80) in range(20, 40)
    moment = bucket.ready_ns(50)
    assert 0 < moment - time.monotonic_ns() <= 50_000_000
    while time.monotonic_ns() < moment:
        pass
    assert bucket.take(50) == 50


def test_a_rate_of_nothing_is_no_limit() -> None:
    bucket = TokenBucket(0, 10)
    assert [bucket.take(1000) for _ in range(3)] == [1000] * 3
