"""What every test of vhost-user holds: that nothing is left open or mapped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kvmpv.vhostuser import shared
from tests.unit.vhostuser.peer import Peer, descriptors

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    before = descriptors(), maps(), len(shared._mappings)
    yield
    assert (descriptors(), maps(), len(shared._mappings)) == before


def maps() -> int:
    with open("/proc/self/maps") as file:
        return sum("memfd:" in line for line in file)


@pytest.fixture
def peer() -> Iterator[Peer]:
    made = Peer()
    yield made
    made.close()
