"""Boxes to drive: the one that tests share, and boxes of a test's own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvmpv.devbox.box import Box

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRIPT = str(Path(__file__).resolve().parents[2] / "scripts" / "devbox")
OWN = "test"


@pytest.fixture(scope="session")
def box() -> Box:
    """Return the box that everybody uses, up; it is left as it is found."""
    found = Box()
    found.up(owner=os.getpid())
    found.wait()
    return found


@pytest.fixture
def own_box() -> Iterator[Box]:
    """Return a box that a test may spoil, not up yet."""
    found = Box(OWN)
    found.down()
    yield found
    found.down()


def devbox(*words: str, **more: object) -> subprocess.CompletedProcess[bytes]:
    """Run scripts/devbox as a user does."""
    options: dict[str, object] = {"capture_output": True, "timeout": 120, "check": False}
    environment = os.environ | {"KVMPV_DEVBOX_OWNER": str(os.getpid())}
    options["env"] = environment | more.pop("env", {})  # type: ignore[operator]
    return subprocess.run([SCRIPT, *words], **(options | more))  # type: ignore[call-overload,no-any-return]
