"""A namespace for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.host.net.namespace import Namespace

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace() as made:
        yield made
