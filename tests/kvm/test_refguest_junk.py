"""A hostile guest's calls: each is answered, whatever is in the registers and records."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpv import abi
from tests.kvm.junk import (
    CALLS,
    EDGES,
    GOES_ON,
    GUESTS_OWN,
    MASK64,
    U64,
    WORD,
    call,
    extra_offset,
    few_runs,
    harms_results,
    is_answer,
    make_calls,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kvm.junk import Call


@pytest.fixture(autouse=True)
def crash_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


NUMBER = st.sampled_from(GOES_ON) | WORD.filter(lambda word: word not in CALLS)
JUNK = st.tuples(NUMBER, WORD, WORD, WORD, WORD, WORD, U64, st.integers(0, 7)).filter(
    lambda each: not harms_results(each)
)


@few_runs
@given(batch=st.lists(JUNK, min_size=1, max_size=60))
def test_every_junk_call_is_answered(tmp_path: Path, batch: list[Call]) -> None:
    end, results = make_calls(tmp_path, batch)
    assert end.kind == "poweroff"
    for each, result in zip(batch, results, strict=True):
        assert is_answer(each[0], result), (each, result)


def test_every_call_is_answered_with_every_edge_in_all_registers(tmp_path: Path) -> None:
    batch = [call(number, *[edge] * 5, MASK64) for number in GOES_ON for edge in EDGES]
    batch = [each for each in batch if not harms_results(each)]
    end, results = make_calls(tmp_path, batch)
    assert end.kind == "poweroff"
    for each, result in zip(batch, results, strict=True):
        assert is_answer(each[0], result), (each, result)


def test_numbers_that_are_none_are_unknown(tmp_path: Path) -> None:
    numbers = [n for n in [*range(0x100), *EDGES] if n not in CALLS]
    numbers += [n | high for n in CALLS for high in (1 << 8, 1 << 31, 1 << 32, 1 << 63)]
    end, results = make_calls(tmp_path, [call(number) for number in numbers])
    assert end.kind == "poweroff"
    assert results == [-abi.ENOSYS] * len(numbers)


@few_runs
@given(
    number=st.sampled_from((abi.HC_POWEROFF, abi.HC_CRASH)),
    words=st.lists(WORD, min_size=5, max_size=5),
)
def test_ends_with_junk_end_the_guest_or_fail(
    tmp_path: Path, number: int, words: list[int]
) -> None:
    end, results = make_calls(tmp_path, [call(number, *words)])
    assert end.kind in ("poweroff", "crash")
    assert all(-result in (abi.EFAULT, abi.EMSGSIZE) for result in results)


@st.composite
def records(draw: st.DrawFn) -> bytes:
    """Draw a record that looks nearly right, so that more than its head is looked at."""
    version, size = draw(st.sampled_from((1, 1, 1, 0, 2))), draw(st.integers(0, 0x80))
    return struct.pack("<HH", version, size) + draw(st.binary(min_size=252, max_size=252))


@few_runs
@given(
    record=records(),
    number=st.sampled_from(
        (abi.HC_EVTCHN_BIND, abi.HC_PORT_STATUS, abi.HC_REQUESTS_GET, abi.HC_VCPU_UP)
    ),
)
def test_junk_records_are_answered(tmp_path: Path, record: bytes, number: int) -> None:
    at = extra_offset(5)
    batch = [
        call(abi.HC_EVTCHN_ALLOC),
        call(abi.HC_EVTCHN_ALLOC),
        call(number, at, at, relative=3),
        call(number, 0, at, relative=2),
        call(abi.HC_YIELD),
    ]
    end, results = make_calls(tmp_path, batch, record)
    assert end.kind == "poweroff"
    for each, result in zip(batch, results, strict=True):
        assert is_answer(each[0], result), (each, result)


@few_runs
@given(words=st.lists(WORD, min_size=8, max_size=8), long_mode=st.booleans())
def test_vcpu_started_nowhere_is_the_guests_crash(
    tmp_path: Path, words: list[int], long_mode: bool
) -> None:
    rip, rsp, rdi, rsi, cr0, cr3, cr4, efer = words
    if long_mode:
        cr0, cr4, efer = 0x80000011, 0x20, 0x500
    record = abi.VCPU_START.pack(1, 72, 0, rip, rsp, rdi, rsi, cr0, cr3, cr4, efer)
    wait = [call(abi.HC_YIELD)] * 50
    up = call(abi.HC_VCPU_UP, 1, extra_offset(1 + len(wait)), relative=2)
    end, results = make_calls(tmp_path, [up, *wait], record, vcpus=2)
    assert end.kind in GUESTS_OWN
    if results:
        assert results[0] in (0, -abi.EINVAL)
