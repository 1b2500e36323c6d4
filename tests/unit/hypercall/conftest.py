"""Give each test a guest's handlers of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.hypercall.world import World

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def world() -> Iterator[World]:
    with World() as made:
        yield made
