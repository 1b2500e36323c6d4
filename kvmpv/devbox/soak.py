"""Boot guest after guest in the box: what an emulator, a CPU model or a kernel is judged by."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from kvmpv.errors import LostBox

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpv.devbox.box import Box

VCPUS = 2
GUEST_WITHIN = 120
# The guest's own answer, so that a guest that came up with one vCPU does not count.
COMMAND = [
    "timeout", "-k", "5", str(GUEST_WITHIN),
    "kvmpv", "run", "--vcpus", str(VCPUS), "--exec", "nproc",
]  # fmt: skip


class Outcome:
    """What became of one guest."""

    def __init__(self, verdict: str, seconds: float) -> None:
        self.verdict = verdict  # empty if it came up
        self.seconds = seconds


def soak(
    box: Box, count: int, owner: int, told: Callable[[int, Outcome], None], command: list[str]
) -> list[Outcome]:
    """Boot ``count`` guests one after the other; a lost box is replaced and its guest counted."""
    outcomes = []
    for number in range(1, count + 1):
        box.up(owner=owner)
        outcome = _one(box, command)
        outcomes.append(outcome)
        told(number, outcome)
    return outcomes


def _one(box: Box, command: list[str]) -> Outcome:
    started = time.monotonic()
    try:
        status, out, err = box.capture(command)
    except LostBox as lost:
        return Outcome(str(lost), time.monotonic() - started)
    took = time.monotonic() - started
    if status == 0 and out.strip() == str(VCPUS).encode():
        return Outcome("", took)
    words = (err or out).decode("utf-8", "replace").strip().splitlines()
    return Outcome(f"status {status}: {words[-1] if words else 'no message'}", took)
