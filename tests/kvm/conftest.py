"""Give the tests this host's KVM, which they need: without it they fail, they are not skipped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kvmpv.kvm import System
from tests.kvm.guest import Guest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    with System.open() as opened:
        yield opened


@pytest.fixture
def guest(system: System) -> Iterator[Callable[..., Guest]]:
    """Make guests from hexadecimal machine code, and close them after the test."""
    made: list[Guest] = []

    def make(code: str | bytes, irqchip: str = "none", handler: bytes = b"") -> Guest:
        raw = code if isinstance(code, bytes) else bytes.fromhex(code)
        made.append(Guest(system, raw, irqchip, handler))
        return made[-1]

    yield make
    for one in made:
        one.close()
