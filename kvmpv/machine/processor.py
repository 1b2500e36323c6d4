"""A processor: one vCPU, the thread that runs it, and the exit loop.

Only a processor's own thread makes ioctls on its vCPU while it is up. Others ask for attention
with ``kick``: KVM_RUN then completes what the last exit left pending, and returns.
"""

from __future__ import annotations

import _thread
import errno

from kvmpv import abi
from kvmpv.errors import KvmError
from kvmpv.kvm import uapi
from kvmpv.machine import _gate

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Final

    from kvmpv.kvm import Vcpu
    from kvmpv.machine.machine import Machine
else:
    import _signal as signal  # signal itself imports enum, which takes a third of our start

KICK_SIGNAL: Final = signal.SIGRTMIN + 1
MASK64: Final = (1 << 64) - 1
REGS: Final = uapi.KVM_SYNC_X86_REGS
SREGS: Final = uapi.KVM_SYNC_X86_SREGS


class Processor:
    """One vCPU of a machine and its thread, while that is up.

    ``idle`` is held while the vCPU may be in KVM_RUN: whoever has it may look at the registers.
    ``leaving`` says that it goes down: it is ``up`` until its thread has ended.
    """

    __slots__ = (
        "_begun",
        "_gate",
        "_machine",
        "_running",
        "_thread",
        "exits",
        "idle",
        "index",
        "leaving",
        "reset_lapic",
        "reset_sregs",
        "up",
        "vcpu",
    )

    def __init__(self, machine: Machine, vcpu: Vcpu) -> None:
        self._machine = machine
        self._thread = 0
        self.vcpu = vcpu
        self.index = vcpu.index
        self.idle = _thread.allocate_lock()
        self.up = self.leaving = False
        self._begun = _thread.allocate_lock()  # free once the thread runs
        self._running = _thread.allocate_lock()  # held by a thread from before its start
        self._gate: _gate.Gate | None = None
        self.exits: dict[int, int] = {}  # other exits by reason
        self.reset_sregs = vcpu.sregs()
        self.reset_lapic = vcpu.lapic()
        vcpu.sync(REGS | SREGS)

    @property
    def calls(self) -> dict[int, int]:
        """How many hypercalls there were, by number; all that are unknown count as UNKNOWN."""
        return self._gate.calls if self._gate is not None else {}

    def start(self) -> None:
        """Start the thread; the vCPU's registers are set. Raises KvmError.

        It runs when this returns: a guest gives a vCPU that it starts so many seconds, and on a
        busy host a thread may well take some of them to begin.
        """
        self._running.acquire()
        self._begun.acquire()
        self.up, self.leaving = True, False
        try:
            _thread.start_new_thread(self._main, ())
        except RuntimeError:  # its only reason: the host has no more threads for us
            self._begun.release()
            self._ended()
            raise KvmError(f"starting vCPU {self.index}'s thread", errno.EAGAIN) from None
        with self._begun:
            pass

    def wait_until_down(self) -> None:
        """Wait for the end of the thread of a vCPU that is leaving."""
        while self.leaving:  # not if another vCPU has started it again
            if self._running.acquire(timeout=0.01):
                self._running.release()
                return

    def _ended(self) -> None:
        self.up = False
        self._running.release()

    def kick(self) -> None:
        """Make KVM_RUN return as soon as it can; any thread may call this."""
        if self.up:
            self.vcpu.kick(self._thread, KICK_SIGNAL)

    def _main(self) -> None:
        machine = self._machine
        self._thread = _thread.get_native_id()
        self._begun.release()
        try:
            with self.idle:
                if self._attend():
                    self._loop()
        except KvmError as error:
            machine.end(self.index, "failed", str(error))
        except BaseException as error:  # a bug of ours ends the domain, and is named
            machine.end_by_bug(self.index, error)
        finally:
            self._ended()

    def _loop(self) -> None:
        """Run the vCPU until it goes down or its machine ends."""
        vcpu = self.vcpu
        if self._gate is None:
            self._gate = _gate.Gate(self._machine.handlers, self.index)
        serve, fd, page = self._gate.serve, vcpu.fd, vcpu.page8
        while True:
            what = serve(fd, page)
            if what == _gate.DOWN:
                vcpu.complete_exit()
                return
            if not (self._other_exit() if what == _gate.OTHER else self._interrupted(-what)):
                return

    def _interrupted(self, error: int) -> bool:
        if error == errno.EINTR:
            return self._attend()
        if error == errno.EAGAIN:
            return True
        raise KvmError("KVM_RUN", error)

    def _attend(self) -> bool:
        """Do what the kick was for; return whether to go on running."""
        machine = self._machine
        self.vcpu.clear_kick()
        while machine.paused and not machine.ending:
            self.idle.release()
            with machine.resume_lock:
                pass
            self.idle.acquire()
            self.vcpu.kvmclock_ctrl()
        return not machine.ending

    def _other_exit(self) -> bool:
        """Act on an exit that is no well-formed hypercall; return whether to go on running."""
        page8, page32 = self.vcpu.page8, self.vcpu.page32
        reason = page32[uapi.RUN_EXIT_REASON32]
        self.exits[reason] = self.exits.get(reason, 0) + 1
        if self._machine.trace is not None:
            self._machine.trace(self)
        if reason == uapi.KVM_EXIT_IO:
            self._port()
        elif reason == uapi.KVM_EXIT_MMIO:
            if not page8[uapi.RUN_MMIO_IS_WRITE8]:
                self.vcpu.page64[uapi.RUN_MMIO_DATA64] = MASK64
        elif reason in (uapi.KVM_EXIT_HLT, uapi.KVM_EXIT_IRQ_WINDOW_OPEN, uapi.KVM_EXIT_INTR):
            pass  # the in-kernel local APIC handles them: nothing is left to do
        elif reason in (uapi.KVM_EXIT_X86_RDMSR, uapi.KVM_EXIT_X86_WRMSR):
            page8[uapi.RUN_MSR_ERROR8] = 1  # the guest gets a general protection fault
        else:
            self._machine.end_by_exit(self)
            return False
        return True

    def _port(self) -> None:
        """Answer a port that nothing is behind, or the gate when it is used in a wrong way."""
        page8, page64 = self.vcpu.page8, self.vcpu.page64
        size = page8[uapi.RUN_IO_SIZE8]
        count = self.vcpu.page32[uapi.RUN_IO_COUNT32]
        port = page8[uapi.RUN_IO_PORT8] | page8[uapi.RUN_IO_PORT8 + 1] << 8
        doorbell = port - abi.DOORBELL_PORT
        if 0 <= doorbell < 4 * abi.MAX_DEVICES:
            self._machine.doorbell_exits[doorbell // 4] += 1  # of no queue that is set up
        at_gate = port <= abi.GATE_PORT_NUMBER < port + size
        if page8[uapi.RUN_IO_DIRECTION8] == uapi.KVM_EXIT_IO_IN:
            answer = (-abi.ENOSYS if at_gate else -1) & (1 << 8 * size) - 1
            at = page64[uapi.RUN_IO_DATA_OFFSET64]
            page8[at : at + size * count] = answer.to_bytes(size, "little") * count
        elif at_gate:
            allowed = page8[uapi.RUN_CS_L8] and not page8[uapi.RUN_SS_DPL8]
            error = -abi.ENOSYS if allowed else -abi.EPERM
            page64[uapi.RUN_RAX64] = error & MASK64
            page64[uapi.RUN_DIRTY_REGS64] = REGS
