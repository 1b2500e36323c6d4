"""Guests to test: they boot the patched kernel and the small root file system built last."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import kvmpv


@pytest.fixture(scope="session")
def guest() -> Iterator[kvmpv.Domain]:
    """A running guest with two of four vCPUs online, for tests that leave it as it was."""
    with kvmpv.Domain(vcpus=2, max_vcpus=4, memory=256 << 20) as domain:
        yield domain
