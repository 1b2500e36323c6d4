"""Mark each test by its folder: what it may assume is where it lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

TESTS = Path(__file__).parent

# The box is some twenty times slower than the host: it tries fewer examples, and no example has a
# deadline, for what it would measure is the machine's other work.
settings.register_profile("host", deadline=None, max_examples=50)
settings.register_profile("box", deadline=None, max_examples=10)
settings.load_profile("box" if os.environ.get("KVMPV_BOX") else "host")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(TESTS):
            item.add_marker(item.path.relative_to(TESTS).parts[0])
