from __future__ import annotations

import pytest

from scripts.tools.suite.budget import Share, overdrawn


@pytest.fixture
def share() -> Share:
    host = {"tests/unit/": 1.0, "tests/unit/kvm/": 2.0, "tests/unit/kvm/test_run.py": 9.0}
    return Share("first", 5.0, {"host": host})


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("tests/unit/kvm/test_run.py", 9.0),
        ("tests/unit/kvm/test_vm.py", 2.0),
        ("tests/unit/abi/test_layout.py", 1.0),
        ("tests/boot/test_exec.py", None),
    ],
)
def test_nearest_entry_is_the_ceiling(share: Share, name: str, seconds: float | None) -> None:
    assert share.ceiling("host", name) == seconds


def test_ceiling_is_of_one_place(share: Share) -> None:
    assert share.ceiling("box", "tests/unit/kvm/test_run.py") is None


def test_share_that_cannot_hold_its_ceilings_is_named() -> None:
    share = Share("first", 5.0, {"fixed": {"setup": 3.0, "mypy": 4.0}})
    assert overdrawn([share]) == ["first: ceilings add up to 7 s, the share is 5 s"]
