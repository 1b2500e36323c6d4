"""The MSR filter, and MSRs served by user space."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kvmpv.errors import BadInput, KvmError
from kvmpv.kvm import MsrRange, exits, uapi

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kvm.guest import Guest

OURS = 0x4B505600
# mov ecx, OURS; rdmsr; out 0x10, eax; wrmsr; out 0x11, eax
READ_WRITE = "b90056504b  0f32  e710  0f30  e711"
TO_USER = uapi.KVM_MSR_EXIT_REASON_FILTER


def filtered(one: Guest, ranges: list[MsrRange]) -> None:
    one.vm.enable_cap(uapi.KVM_CAP_X86_USER_SPACE_MSR, TO_USER)
    one.vm.set_msr_filter(ranges)


def test_a_filtered_msr_is_served_by_user_space(guest: Callable[..., Guest]) -> None:
    one = guest(READ_WRITE)
    filtered(one, [MsrRange(OURS, 1)])
    assert one.exit_reason() == uapi.KVM_EXIT_X86_RDMSR
    assert one.vcpu.page32[uapi.RUN_MSR_INDEX32] == OURS
    assert exits.describe(one.vcpu) == "rdmsr: 0x4b505600 (filtered)"
    one.vcpu.page64[uapi.RUN_MSR_DATA64] = 0x1234
    one.vcpu.page8[uapi.RUN_MSR_ERROR8] = 0
    assert one.port() == (0x10, 0x1234)
    assert one.exit_reason() == uapi.KVM_EXIT_X86_WRMSR
    assert exits.describe(one.vcpu) == "wrmsr: 0x4b505600 (filtered), value 0x1234"
    assert one.port() == (0x11, 0x1234)


def test_an_error_in_the_page_faults_the_guest(guest: Callable[..., Guest]) -> None:
    one = guest(READ_WRITE)
    filtered(one, [MsrRange(OURS, 1)])
    assert one.exit_reason() == uapi.KVM_EXIT_X86_RDMSR
    one.vcpu.page8[uapi.RUN_MSR_ERROR8] = 1
    assert one.exit_reason() == uapi.KVM_EXIT_SHUTDOWN  # nobody handles the #GP


def test_a_range_denies_no_more_than_it_counts(guest: Callable[..., Guest]) -> None:
    # mov ecx, 0xc0000100 (FS base); rdmsr; out 0x10, eax; inc ecx (GS base); rdmsr
    one = guest("b9000100c0  0f32  e710  ffc1  0f32")
    filtered(one, [MsrRange(0xC0000101, 1)])
    assert one.port() == (0x10, 0)
    assert one.exit_reason() == uapi.KVM_EXIT_X86_RDMSR
    assert one.vcpu.page32[uapi.RUN_MSR_INDEX32] == 0xC0000101


def test_bits_allow_where_the_rest_is_denied(guest: Callable[..., Guest]) -> None:
    one = guest("b9000100c0  0f32  e710  ffc1  0f32")
    one.vm.enable_cap(uapi.KVM_CAP_X86_USER_SPACE_MSR, TO_USER)
    one.vm.set_msr_filter([MsrRange(0xC0000100, 2, b"\1")], deny=True)
    assert one.port() == (0x10, 0)
    assert one.exit_reason() == uapi.KVM_EXIT_X86_RDMSR


@pytest.mark.parametrize("count", [0, -1, 12289])
def test_a_range_of_impossible_size_is_refused(count: int) -> None:
    with pytest.raises(BadInput):
        MsrRange(0, count)


def test_too_many_ranges_are_refused(guest: Callable[..., Guest]) -> None:
    with pytest.raises(BadInput, match="17 MSR ranges"):
        guest("f4").vm.set_msr_filter([MsrRange(n, 1) for n in range(17)])


def test_msrs_are_read_and_written_by_index(guest: Callable[..., Guest]) -> None:
    vcpu = guest("f4").vcpu
    vcpu.set_msrs({0xC0000100: 0x1000, 0xC0000101: 0x2000})
    assert vcpu.msrs([0xC0000101, 0xC0000100]) == {0xC0000101: 0x2000, 0xC0000100: 0x1000}


def test_an_unknown_msr_is_named(guest: Callable[..., Guest]) -> None:
    vcpu = guest("f4").vcpu
    with pytest.raises(KvmError, match="0x4b505600"):
        vcpu.msrs([0xC0000100, OURS])
    with pytest.raises(KvmError, match="0x4b505600"):
        vcpu.set_msrs({0xC0000100: 0, OURS: 1})
    assert vcpu.msrs([OURS, 0xC0000100], missing_ok=True) == {0xC0000100: 0}
