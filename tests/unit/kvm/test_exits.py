"""Exits in words, from run pages made by hand: what no host can be made to do at will."""

from __future__ import annotations

from typing import Any

import pytest

from kvmpv.kvm import Vcpu, exits, uapi


class Page(Vcpu):
    """Stand in for a vCPU: a run page and nothing else."""

    def __init__(self, reason: int) -> None:
        self.page8 = memoryview(bytearray(12288))
        self.page32 = self.page8.cast("I")
        self.page64 = self.page8.cast("Q")
        self.page32[uapi.RUN_EXIT_REASON32] = reason


def described(reason: int, *, words: dict[int, int] | None = None, **views: Any) -> str:
    page = Page(reason)
    for index, value in (words or {}).items():
        page.page64[index] = value
    for index, value in views.get("halves", {}).items():
        page.page32[index] = value
    for index, value in views.get("octets", {}).items():
        page.page8[index] = value
    return exits.describe(page)


def test_every_reason_has_a_name_of_its_own() -> None:
    reasons = {
        value
        for name, value in vars(uapi).items()
        if name.startswith("KVM_EXIT_") and not name.startswith("KVM_EXIT_IO_")
    }
    assert set(exits.NAMES) == reasons
    assert len(set(exits.NAMES.values())) == len(exits.NAMES)
    assert exits.name(999) == "exit-999"


@pytest.mark.parametrize("reason", exits.NAMES)
def test_a_blank_page_is_described(reason: int) -> None:
    assert described(reason).startswith(exits.NAMES[reason])


@pytest.mark.parametrize("reason", exits.NAMES)
def test_a_page_full_of_ones_is_described(reason: int) -> None:
    page = Page(reason)
    page.page8[uapi.RUN_UNION : uapi.RUN_UNION + 256] = b"\xff" * 256
    assert exits.describe(page).startswith(exits.NAMES[reason])


def test_emulation_failure_shows_the_instructions_bytes() -> None:
    text = described(
        uapi.KVM_EXIT_INTERNAL_ERROR,
        words={uapi.RUN_EMULATION_FLAGS64: 1},
        halves={
            uapi.RUN_INTERNAL_SUBERROR32: uapi.KVM_INTERNAL_ERROR_EMULATION,
            uapi.RUN_INTERNAL_NDATA32: 4,
        },
        octets={
            uapi.RUN_EMULATION_INSN_SIZE8: 2,
            uapi.RUN_EMULATION_INSN_BYTES8: 0x0F,
            uapi.RUN_EMULATION_INSN_BYTES8 + 1: 0x0B,
        },
    )
    assert text == "internal-error: an instruction that KVM cannot emulate, bytes 0f 0b"


def test_an_emulation_failure_without_bytes_shows_its_data() -> None:
    text = described(
        uapi.KVM_EXIT_INTERNAL_ERROR,
        words={uapi.RUN_INTERNAL_DATA64: 0x55},
        halves={uapi.RUN_INTERNAL_SUBERROR32: 3, uapi.RUN_INTERNAL_NDATA32: 1},
    )
    assert text == "internal-error: an exit while an event was delivered, data 0x55"


def test_fail_entry_names_reason_and_cpu() -> None:
    text = described(
        uapi.KVM_EXIT_FAIL_ENTRY,
        words={uapi.RUN_FAIL_ENTRY_REASON64: 0x80000021},
        halves={uapi.RUN_FAIL_ENTRY_CPU32: 3},
    )
    assert text == "fail-entry: hardware reason 0x80000021 on host CPU 3"


def test_system_event_is_named() -> None:
    halves = {uapi.RUN_SYSTEM_EVENT_TYPE32: uapi.KVM_SYSTEM_EVENT_CRASH}
    assert described(uapi.KVM_EXIT_SYSTEM_EVENT, halves=halves) == "system-event: crash"


def test_a_repeated_port_write_says_how_often() -> None:
    words = {
        uapi.RUN_IO_WORD64: uapi.port_word(0x3F8, 1, count=5),
        uapi.RUN_IO_DATA_OFFSET64: 4096,
    }
    text = described(uapi.KVM_EXIT_IO, words=words, octets={4096: 0x41})
    assert text == "port: write of 0x41 to 0x03f8, 5 times"
