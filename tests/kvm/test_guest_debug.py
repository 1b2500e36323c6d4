"""Debugging a guest from outside: steps, breakpoints, and what a host without them says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kvmpv.errors import BadInput
from kvmpv.kvm import exits, uapi
from tests.kvm.guest import CODE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kvm.guest import Guest

STEPS = "90  90  b841000000  90  f4"  # nop; nop; mov eax, 0x41; nop; hlt


def test_single_step_stops_behind_each_instruction(guest: Callable[..., Guest]) -> None:
    one = guest(STEPS)
    one.vcpu.set_guest_debug(single_step=True)
    stops = []
    for _ in range(4):
        assert one.exit_reason() == uapi.KVM_EXIT_DEBUG
        stops.append(one.vcpu.page64[uapi.RUN_DEBUG_PC64] - CODE)
    assert stops == [1, 2, 7, 8]
    assert exits.describe(one.vcpu).startswith("debug: vector 1 at 0x1008")
    one.vcpu.set_guest_debug()
    assert one.exit_reason() == uapi.KVM_EXIT_HLT


def test_a_breakpoint_stops_before_its_instruction(guest: Callable[..., Guest]) -> None:
    one = guest(STEPS)
    one.vcpu.set_guest_debug(breakpoints=[CODE + 2])
    assert one.exit_reason() == uapi.KVM_EXIT_DEBUG
    assert one.vcpu.page64[uapi.RUN_DEBUG_PC64] == CODE + 2
    assert one.vcpu.regs().rax == 0
    one.vcpu.set_guest_debug()
    assert one.exit_reason() == uapi.KVM_EXIT_HLT
    assert one.vcpu.regs().rax == 0x41


def test_int3_stops_or_is_named_as_what_cannot_be_emulated(guest: Callable[..., Guest]) -> None:
    one = guest("90 cc f4")
    one.vcpu.set_guest_debug(software=True)
    reason = one.exit_reason()
    if reason == uapi.KVM_EXIT_DEBUG:
        assert one.vcpu.page32[uapi.RUN_DEBUG_EXCEPTION32] == 3
        assert one.vcpu.page64[uapi.RUN_DEBUG_PC64] == CODE + 1
        assert exits.emulation_bytes(one.vcpu) == b""
    elif reason == uapi.KVM_EXIT_SHUTDOWN:
        pass  # an emulated SVM hands it to the guest, which has no table of interrupts
    else:  # a KVM that emulates the kernel's mode does not know it
        assert reason == uapi.KVM_EXIT_INTERNAL_ERROR
        assert exits.emulation_bytes(one.vcpu).startswith(b"\xcc\xf4")
        assert "cannot emulate, bytes cc f4" in exits.describe(one.vcpu)


def test_five_breakpoints_are_too_many(guest: Callable[..., Guest]) -> None:
    with pytest.raises(BadInput, match="5 breakpoints"):
        guest(STEPS).vcpu.set_guest_debug(breakpoints=range(5))


def test_registers_in_words(guest: Callable[..., Guest]) -> None:
    vcpu = guest(STEPS).vcpu
    text = exits.registers(vcpu.regs(), vcpu.sregs())
    assert "   rip=0000000000001000" in text
    assert "    cs=0008 base=0" in text
