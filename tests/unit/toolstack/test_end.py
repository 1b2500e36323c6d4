"""What a domain's end means: status, exception."""

from __future__ import annotations

import pytest

from kvmpv.errors import BadInput, GuestCrash, KvmpvError
from kvmpv.toolstack.domain import End


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("poweroff", 0),
        ("bad-input", 2),
        ("failed", 123),
        ("bug", 123),
        ("stuck", 124),
        ("crash", 125),
        ("triple-fault", 125),
        ("killed", 130),
        ("nonsense", 123),
    ],
)
def test_status_is_the_documented_one(kind: str, status: int) -> None:
    end = End({"kind": kind, "message": "why"}, "")
    assert (end.status, end.message) == (status, "why")
    if status in (0, 130):
        end.check()
    else:
        with pytest.raises(KvmpvError, match=r"^why$") as caught:
            end.check()
        assert caught.value.exit_status == status


def test_exceptions_are_told_apart_and_name_the_report() -> None:
    with pytest.raises(BadInput):
        End({"kind": "bad-input"}, "").check()
    with pytest.raises(GuestCrash, match="full report: /path") as caught:
        End({"kind": "crash", "message": "why"}, "/path").check()
    assert caught.value.report == "/path"


def test_process_that_said_nothing_has_failed() -> None:
    assert End({}, "").kind == "failed"


def test_statistics_are_numbers() -> None:
    end = End({"kind": "poweroff", "stat.boots": "2", "stat.odd": "x", "other": "1"}, "")
    assert end.stats == {"boots": 2}
