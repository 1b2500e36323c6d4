"""Running a vCPU: each kind of exit, registers by the run page, and getting it out of the guest."""

from __future__ import annotations

import errno
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING

from kvmpv.kvm import exits, uapi
from tests.kvm.guest import CODE, MMIO, SIGNAL, Guest

if TYPE_CHECKING:
    from collections.abc import Callable

# mov edi, 7; mov rax, 0x1122334455667788; mov edx, 0x4b50; out dx, eax; mov ebx, eax; out dx, eax
CALL = "bf07000000  48b88877665544332211  ba504b0000  ef  89c3  ef"
FOREVER = "ebfe"  # jmp $


def test_port_write_shows_in_one_word_and_registers_in_the_page(
    guest: Callable[..., Guest],
) -> None:
    vcpu = guest(CALL).vcpu
    vcpu.sync(uapi.KVM_SYNC_X86_REGS | uapi.KVM_SYNC_X86_SREGS)
    assert vcpu.run() == 0
    assert vcpu.page32[uapi.RUN_EXIT_REASON32] == uapi.KVM_EXIT_IO
    assert vcpu.page64[uapi.RUN_IO_WORD64] == uapi.port_word(0x4B50, 4)
    assert vcpu.page64[uapi.RUN_RAX64] == 0x1122334455667788
    assert vcpu.page64[uapi.RUN_RDI64] == 7
    assert vcpu.page8[uapi.RUN_CS_L8] == 1
    assert vcpu.page8[uapi.RUN_SS_DPL8] == 0
    assert exits.describe(vcpu) == "port: write of 0x55667788 to 0x4b50"


def test_rax_written_to_the_page_reaches_the_guest(guest: Callable[..., Guest]) -> None:
    vcpu = guest(CALL).vcpu
    vcpu.sync(uapi.KVM_SYNC_X86_REGS)
    assert vcpu.run() == 0
    vcpu.page64[uapi.RUN_RAX64] = (1 << 64) - 38
    vcpu.page64[uapi.RUN_DIRTY_REGS64] = uapi.KVM_SYNC_X86_REGS
    assert vcpu.run() == 0
    assert vcpu.page64[uapi.RUN_RAX64] == (1 << 64) - 38
    assert vcpu.page64[uapi.RUN_RBX64] == (1 << 32) - 38
    assert vcpu.page64[uapi.RUN_RDI64] == 7


def test_port_read_takes_what_is_written_to_the_page(guest: Callable[..., Guest]) -> None:
    one = guest("e520  e710")  # in eax, 0x20; out 0x10, eax
    assert one.exit_reason() == uapi.KVM_EXIT_IO
    assert exits.describe(one.vcpu) == "port: read of 4 from 0x0020"
    at = one.vcpu.page64[uapi.RUN_IO_DATA_OFFSET64]
    one.vcpu.page8[at : at + 4] = b"\x78\x56\x34\x12"
    assert one.port() == (0x10, 0x12345678)


def test_mmio_write_and_read(guest: Callable[..., Guest]) -> None:
    # mov eax, 0xcafe; mov [MMIO], eax; mov eax, [MMIO]; out 0x10, eax
    one = guest("b8feca0000  a30000300000000000  a10000300000000000  e710")
    assert one.exit_reason() == uapi.KVM_EXIT_MMIO
    page8, page32, page64 = one.vcpu.page8, one.vcpu.page32, one.vcpu.page64
    assert page64[uapi.RUN_MMIO_ADDRESS64] == MMIO
    assert page32[uapi.RUN_MMIO_LENGTH32] == 4
    assert page8[uapi.RUN_MMIO_IS_WRITE8] == 1
    assert exits.describe(one.vcpu) == "mmio: write of 0x0000cafe to 0x300000"
    assert one.exit_reason() == uapi.KVM_EXIT_MMIO
    assert exits.describe(one.vcpu) == "mmio: read of 4 from 0x300000"
    page64[uapi.RUN_MMIO_DATA64] = 0xBEEF
    assert one.port() == (0x10, 0xBEEF)


def test_halt_without_an_interrupt_controller_exits(guest: Callable[..., Guest]) -> None:
    one = guest("f4")
    assert one.exit_reason() == uapi.KVM_EXIT_HLT
    assert exits.describe(one.vcpu) == "halt"


def test_triple_fault_is_a_shutdown(guest: Callable[..., Guest]) -> None:
    one = guest("0f0b")  # ud2, without a handler
    assert one.exit_reason() == uapi.KVM_EXIT_SHUTDOWN
    assert exits.describe(one.vcpu) == "shutdown"


def test_immediate_exit_runs_no_instruction(guest: Callable[..., Guest]) -> None:
    one = guest("f4")
    one.vcpu.page8[uapi.RUN_IMMEDIATE_EXIT8] = 1
    assert one.vcpu.run() == -errno.EINTR
    assert one.vcpu.regs().rip == CODE
    one.vcpu.clear_kick()
    assert one.exit_reason() == uapi.KVM_EXIT_HLT


def test_complete_exit_finishes_the_instruction_only(guest: Callable[..., Guest]) -> None:
    one = guest("e520  ffc0  f4")  # in eax, 0x20; inc eax; hlt
    assert one.exit_reason() == uapi.KVM_EXIT_IO
    at = one.vcpu.page64[uapi.RUN_IO_DATA_OFFSET64]
    one.vcpu.page8[at : at + 4] = b"\x2a\0\0\0"
    assert one.vcpu.complete_exit() == -errno.EINTR
    regs = one.vcpu.regs()
    assert (regs.rip, regs.rax) == (CODE + 2, 42)
    assert one.exit_reason() == uapi.KVM_EXIT_HLT
    assert one.vcpu.regs().rax == 43


def test_kick_from_another_thread_ends_a_run(guest: Callable[..., Guest]) -> None:
    vcpu = guest(FOREVER).vcpu
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(vcpu.run()))
    thread.start()
    assert thread.native_id is not None
    time.sleep(0.05)  # into the guest; a kick that comes before it counts as well
    assert thread.is_alive()
    assert vcpu.kick(thread.native_id, SIGNAL) == 0
    thread.join(10)
    assert results == [-errno.EINTR]
    assert vcpu.run() == -errno.EINTR  # until it is cleared


def test_a_kick_of_a_thread_that_is_no_more_says_so(guest: Callable[..., Guest]) -> None:
    vcpu = guest("f4").vcpu
    with subprocess.Popen(["true"]) as other:  # a number that is no thread of this process
        assert vcpu.kick(other.pid, SIGNAL) == -errno.ESRCH


def test_kick_wakes_a_halted_vcpu(guest: Callable[..., Guest]) -> None:
    vcpu = guest("f4", "split").vcpu  # halts inside the kernel
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(vcpu.run()))
    thread.start()
    assert thread.native_id is not None
    time.sleep(0.05)
    assert vcpu.kick(thread.native_id, SIGNAL) == 0
    thread.join(10)
    assert results == [-errno.EINTR]


def test_signal_mask_lets_a_blocked_signal_end_a_run(guest: Callable[..., Guest]) -> None:
    vcpu = guest(FOREVER).vcpu
    vcpu.set_signal_mask(())
    signal.pthread_sigmask(signal.SIG_BLOCK, {SIGNAL})
    try:
        signal.pthread_kill(threading.get_ident(), SIGNAL)
        assert vcpu.run() == -errno.EINTR
        assert signal.sigwait({SIGNAL}) == SIGNAL  # it is still pending: nothing was lost
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {SIGNAL})
    vcpu.set_signal_mask(None)
