"""All of a vCPU's state: read, written, and carried over to another machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kvmpv.errors import BadInput, KvmError
from kvmpv.kvm import Regs, cpuid, uapi
from tests.kvm.guest import CODE, DATA, LAPIC_ON, Guest

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpv.kvm import System, Vcpu

# inc ebx; mov eax, ebx; out 0x10, eax; jmp back
COUNT = "ffc3  89d8  e710  ebf8"
GS_BASE = 0xC0000101


def test_regs_write_only_what_is_named(guest: Callable[..., Guest]) -> None:
    vcpu = guest("f4").vcpu
    vcpu.set_regs(rbx=5, r15=(1 << 64) - 1)
    regs = vcpu.regs()
    assert (regs.rbx, regs.r15, regs.rip) == (5, (1 << 64) - 1, CODE)
    vcpu.set_regs(Regs(rip=0x2000, rflags=2))
    assert vcpu.regs() == Regs(rip=0x2000, rflags=2)
    with pytest.raises(AttributeError):
        vcpu.set_regs(eax=1)


@pytest.mark.parametrize("what", ["regs", "sregs", "xsave", "xcrs", "mp_state", "lapic"])
def test_what_is_read_can_be_written_back(guest: Callable[..., Guest], what: str) -> None:
    vcpu = guest("f4", "split").vcpu
    before = getattr(vcpu, what)()
    getattr(vcpu, f"set_{what}")(before)
    assert getattr(vcpu, what)() == before


def test_fpu_events_and_debugregs_are_taken_on(guest: Callable[..., Guest]) -> None:
    vcpu = guest("f4", "split").vcpu
    fpu = vcpu.fpu()
    fpu.xmm = bytes(range(256))
    vcpu.set_fpu(fpu)
    assert vcpu.fpu() == fpu
    events = vcpu.events()
    events.nmi_masked = 1
    vcpu.set_events(events)
    assert vcpu.events().nmi_masked == 1
    debugregs = vcpu.debugregs()
    debugregs.db = (0x1000, 0x2000, 0x3000, 0x4000)
    vcpu.set_debugregs(debugregs)
    assert vcpu.debugregs() == debugregs


def test_the_guest_gets_the_cpuid_it_was_given(guest: Callable[..., Guest]) -> None:
    one = guest("b800010040  0fa2  89d8  e710")  # mov eax, 0x40000100; cpuid; mov eax, ebx; out
    entries = one.vcpu.cpuid()
    cpuid.put(entries, cpuid.CpuidEntry(0x40000100, ebx=0x706D766B))
    one.vcpu.set_cpuid(entries)
    assert cpuid.find(one.vcpu.cpuid(), 0x40000100) == cpuid.find(entries, 0x40000100)
    assert one.port() == (0x10, 0x706D766B)


def test_lapic_and_xsave_of_a_wrong_length_are_refused(guest: Callable[..., Guest]) -> None:
    vcpu = guest("f4", "split").vcpu
    with pytest.raises(BadInput):
        vcpu.set_lapic(b"")
    with pytest.raises(BadInput):
        vcpu.set_xsave(b"")
    with pytest.raises(KvmError):
        guest("f4").vcpu.lapic()  # no controller in the kernel, no LAPIC


def test_translate_walks_the_guests_tables(guest: Callable[..., Guest]) -> None:
    vcpu = guest("f4").vcpu
    assert vcpu.translate(DATA + 5) == DATA + 5
    assert vcpu.translate(0x40000000) is None


def test_clocks_of_vcpu_and_machine(guest: Callable[..., Guest]) -> None:
    one = guest("f4", "split")
    assert one.vcpu.tsc_khz() > 100_000
    assert one.vcpu.kvmclock_ctrl() is False  # the guest has not set one up
    clock = one.vm.get_clock()
    clock.clock, clock.flags = 1 << 50, 0
    one.vm.set_clock(clock)
    now = one.vm.get_clock().clock
    assert 1 << 50 <= now < (1 << 50) + 60 * 10**9


def test_a_machine_restored_goes_on_where_it_was(
    guest: Callable[..., Guest], system: System
) -> None:
    first = guest(LAPIC_ON + bytes.fromhex(COUNT), "split")
    assert [first.port()[1] for _ in range(3)] == [1, 2, 3]
    first.vcpu.complete_exit()
    prepare(first.vcpu)
    saved = first.vcpu.state(system.msr_indices())
    second = guest("f4", "split")
    second.memory[:] = first.memory[:]
    second.vcpu.restore(saved)
    again = second.vcpu.state(system.msr_indices())
    # The time stamp counter and its deadline go on, and so do Hyper-V's run time and reference.
    moving = {0x10, 0x6E0, 0x40000010, 0x40000020}
    for state in (saved, again):
        state["msrs"] = {i: v for i, v in state["msrs"].items() if i not in moving}
    # The LAPIC's timer counts (0x390); all else of it stands still.
    assert without(again.pop("lapic"), 0x390) == without(saved.pop("lapic"), 0x390)
    assert again == saved
    assert second.vcpu.fpu().xmm == bytes(range(256))
    assert [second.port()[1] for _ in range(3)] == [4, 5, 6]
    assert [first.port()[1] for _ in range(1)] == [4]


def prepare(vcpu: Vcpu) -> None:
    """Give state to every part that has some."""
    area = bytearray(vcpu.xsave())
    area[160:416] = bytes(range(256))  # xmm0 to xmm15
    area[512] |= 2  # in use, says the header: without it they count as zero
    vcpu.set_xsave(bytes(area))
    vcpu.set_msrs({GS_BASE: 0x123000})
    debugregs = vcpu.debugregs()
    debugregs.db = (1, 2, 3, 4)
    vcpu.set_debugregs(debugregs)


def without(page: bytes, at: int) -> bytes:
    return page[:at] + page[at + 4 :]


def test_state_of_another_version_is_refused(guest: Callable[..., Guest]) -> None:
    vcpu = guest("f4").vcpu
    saved = vcpu.state([])
    with pytest.raises(BadInput, match="version 2"):
        vcpu.restore(saved | {"version": 2})


def test_sync_keeps_events_in_the_page_too(guest: Callable[..., Guest]) -> None:
    vcpu = guest("e610 f4").vcpu
    vcpu.sync(uapi.KVM_SYNC_X86_REGS | uapi.KVM_SYNC_X86_SREGS | uapi.KVM_SYNC_X86_EVENTS)
    assert vcpu.run() == 0
    regs = vcpu.page8[uapi.RUN_REGS : uapi.RUN_REGS + uapi.SIZE_REGS]
    sregs = vcpu.page8[uapi.RUN_SREGS : uapi.RUN_SREGS + uapi.SIZE_SREGS]
    assert bytes(regs) == vcpu.regs().pack()
    assert bytes(sregs) == vcpu.sregs().pack()
    regs.release()
    sregs.release()
