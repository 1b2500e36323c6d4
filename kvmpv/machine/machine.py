"""A machine: one VM from its making to its end, with its memory, vCPUs and interrupts.

A reboot makes a new one: only memory and the descriptors outlive it.
"""

from __future__ import annotations

import _thread
import os
import time

from kvmpv import abi
from kvmpv.abi import address_map
from kvmpv.errors import KvmError, KvmpvError
from kvmpv.kvm import MsiRoute, Segment, Sregs, Table, exits, uapi
from kvmpv.machine import cpu_model
from kvmpv.machine.boot import GDT_ENTRIES, BootInfo, write_boot_structures
from kvmpv.machine.loader import load_initrd, load_kernel
from kvmpv.machine.processor import Processor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from kvmpv.kvm import System
    from kvmpv.memory import GuestMemory

    Handler = Callable[[int, int, int, int, int, int], int | None]

IDENTITY_MAP: Final = 0xFFFBC000  # four pages that Intel processors want for real mode
CR0: Final = 1 << 31 | 1 << 5 | 1 << 4 | 1 << 1 | 1 << 0  # PG NE ET MP PE
CR4: Final = 1 << 5  # PAE
EFER: Final = 1 << 11 | 1 << 10 | 1 << 8  # NX LMA LME
RFLAGS: Final = 2
STOP_PATIENCE: Final = 30.0  # seconds; a host may be very busy


class Machine:
    """One VM. ``ended`` is an eventfd that becomes readable at its end; see ``kind``, ``message``.

    ``handlers`` answers hypercalls by number and is set before ``start``.
    """

    def __init__(
        self, system: System, memory: GuestMemory, model: cpu_model.CpuModel, max_vcpus: int
    ) -> None:
        self.memory = memory
        self.max_vcpus = max_vcpus
        self.handlers: dict[int, Handler] = {}
        self.processors: dict[int, Processor] = {}
        self.trace: Callable[[Processor], None] | None = None
        self.paused = self.ending = False
        self.resume_lock = _thread.allocate_lock()
        self.kind = self.message = self.detail = ""
        self.culprit: Processor | None = None
        self._lock = _thread.allocate_lock()
        self.loaded: list[tuple[int, int]] = []  # what kernel and initrd take: (gpa, size)
        self.doorbell_exits = [0] * abi.MAX_DEVICES  # those that KVM hands to no backend
        self._online = 0
        self._parked: list[Processor] = []
        self.ended = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.vm = system.create_vm()
        self.vm.split_irqchip(0)
        self._set_intel_addresses()
        for slot, region in enumerate(memory.regions):
            self.vm.set_memory_slot(slot, region.gpa, region.size, region.address)
        self._entries = cpu_model.guest_entries(
            system.supported_cpuid(), model, max_vcpus, abi.FEATURES
        )
        self._boot = self._create(0)

    def _set_intel_addresses(self) -> None:
        # Needed by KVM on Intel processors without unrestricted guest mode; harmless elsewhere.
        self.vm.set_identity_map_address(IDENTITY_MAP)
        self.vm.set_tss_address(IDENTITY_MAP + address_map.PAGE)

    def _create(self, index: int) -> Processor:
        vcpu = self.vm.create_vcpu(index)
        vcpu.set_cpuid(cpu_model.for_vcpu(self._entries, index))
        processor = Processor(self, vcpu)
        self.processors[index] = processor
        return processor

    # ---- boot

    def load(self, kernel: int, initrd: int, info: BootInfo) -> None:
        """Load kernel and initrd from their descriptors (-1: none) and set the boot vCPU's state.

        Raises BadInput when they cannot be loaded.
        """
        loaded = load_kernel(self.memory, kernel)
        self.loaded = [(address_map.HIGH_RAM, loaded.end - address_map.HIGH_RAM)]
        if initrd >= 0:
            info.initrd, info.initrd_size = load_initrd(self.memory, initrd, loaded)
            self.loaded.append((info.initrd, info.initrd_size))
        vcpu = self._boot.vcpu
        info.tsc_khz = vcpu.tsc_khz()
        write_boot_structures(self.memory, loaded, info)
        vcpu.set_sregs(flat_state(self._boot.reset_sregs, CR0, address_map.PAGE_TABLES, CR4, EFER))
        vcpu.set_regs(
            rip=loaded.entry,
            rflags=RFLAGS,
            rsi=address_map.BOOT_PARAMS,
            rdi=address_map.START_INFO,
            rsp=0,
        )

    def start(self) -> None:
        """Start the boot vCPU."""
        self._online = 1
        self._boot.start()

    # ---- what hypercalls do to the machine

    def signal_msi(self, address: int, data: int) -> int:
        """Deliver one MSI."""
        return self.vm.signal_msi(address, data)

    def set_routes(self, routes: list[tuple[int, int, int]]) -> None:
        """Replace the table of GSIs: (GSI, address, data) each."""
        self.vm.set_routing(MsiRoute(*route) for route in routes)

    def irqfd(self, fd: int, gsi: int, *, on: bool) -> None:
        """Have an eventfd raise a GSI, or no more."""
        self.vm.irqfd(fd, gsi, deassign=not on)

    def doorbell(self, port: int, queue: int, fd: int, *, on: bool) -> None:
        """Have an eventfd signalled by a 32-bit ``out`` of a queue's number, or no more."""
        self.vm.ioeventfd(fd, port, 4, datamatch=queue, pio=True, deassign=not on)

    def aside(self, index: int, work: Callable[[], int]) -> int:
        """Do work of a vCPU's own thread that may take long; a pause does not wait for it.

        It is over before the vCPU goes on, and that after the pause.
        """
        processor = self.processors[index]
        processor.idle.release()
        try:
            return work()
        finally:
            if not processor.idle.acquire(blocking=False):
                processor.idle.acquire()
                processor.vcpu.kvmclock_ctrl()

    def vcpu_up(self, apic_id: int, start: abi.VcpuStart) -> int:
        """Start a vCPU that is down; return 0 or a negative errno."""
        if apic_id >= self.max_vcpus:
            return -abi.ENOENT
        processor = self.processors.get(apic_id)
        if processor is not None and processor.leaving:
            # Soon over. The guest would ask again and again, and each time keep its thread from it.
            processor.wait_until_down()
        with self._lock:
            processor = self.processors.get(apic_id)
            if self.ending or (processor is not None and processor.up):
                return -abi.EBUSY
            try:
                processor = processor or self._create(apic_id)
                _reset(processor, start)
            except KvmError:
                return -abi.EINVAL
            self._online += 1
            processor.start()
        return 0

    def vcpu_down(self, index: int) -> int | None:
        """Take the calling vCPU down, unless it is the last; None: it does not return."""
        with self._lock:
            if self._online == 1:
                return -abi.EBUSY
            self._online -= 1
            self.processors[index].leaving = True
        return None

    # ---- pause, resume, end

    def pause(self) -> None:
        """Stop all vCPUs between two instructions; doing so again does nothing."""
        if self.paused:
            return
        self.resume_lock.acquire()
        self.paused = True
        # One that comes up meanwhile parks itself before it first runs.
        self._parked = list(self.processors.values())
        for processor in self._parked:
            processor.kick()
            processor.idle.acquire()

    def resume(self) -> None:
        """Let the vCPUs run on; each tells its guest's clock that it was stopped."""
        if not self.paused:
            return
        self.paused = False
        for processor in self._parked:
            processor.idle.release()
        self.resume_lock.release()

    def end(self, index: int, kind: str, message: str, detail: str = "") -> None:
        """End the machine, from any thread; the first reason given is the one that counts."""
        with self._lock:
            if self.ending:
                return
            self.ending = True
            self.kind, self.message, self.detail = kind, message, detail
            self.culprit = self.processors.get(index)
        os.eventfd_write(self.ended, 1)

    def end_by_exit(self, processor: Processor) -> None:
        """End the machine because KVM cannot go on with this vCPU."""
        reason = processor.vcpu.page32[uapi.RUN_EXIT_REASON32]
        kind = "triple-fault" if reason == uapi.KVM_EXIT_SHUTDOWN else "stuck"
        self.end(processor.index, kind, exits.describe(processor.vcpu))

    def end_by_bug(self, index: int, error: BaseException) -> None:
        """End the machine because this program has a bug."""
        lines = []
        trace = error.__traceback__
        while trace is not None:
            code = trace.tb_frame.f_code
            lines.append(f"  {code.co_filename}:{trace.tb_lineno} in {code.co_name}")
            trace = trace.tb_next
        message = f"a bug in kvmpv: {type(error).__name__}: {error}"
        self.end(index, "bug", message, "\n".join(lines))

    def stop(self) -> None:
        """Stop every vCPU and wait for its thread; their registers can then be read.

        Raises KvmpvError when one does not stop, which would be KVM's fault, or ours.
        """
        self.end(-1, "killed", "the domain was ended")
        self.resume()
        deadline = time.monotonic() + STOP_PATIENCE
        for processor in list(self.processors.values()):
            while processor.up:
                processor.kick()
                if processor.idle.acquire(timeout=0.01):
                    processor.idle.release()
                    time.sleep(0.001)  # it is doing something aside
                if time.monotonic() > deadline:
                    raise KvmpvError(f"vCPU {processor.index} does not stop")

    def close(self) -> None:
        """Stop every vCPU and close the VM."""
        self.stop()
        for processor in self.processors.values():
            processor.vcpu.close()
        self.vm.close()
        os.close(self.ended)


def flat_state(reset: Sregs, cr0: int, cr3: int, cr4: int, efer: int) -> Sregs:
    """Return the state of 64-bit mode with flat segments, on top of the state after reset."""
    sregs = Sregs.unpack(reset.pack())
    data = Segment.flat_data()
    sregs.cs = Segment.flat_code64()
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data
    sregs.gdt = Table(address_map.GDT, len(GDT_ENTRIES) - 1)
    sregs.idt = Table(0, 0)
    sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = cr0, cr3, cr4, efer
    return sregs


def _reset(processor: Processor, start: abi.VcpuStart) -> None:
    """Put a vCPU that is down into the state that its guest asks for."""
    vcpu = processor.vcpu
    sregs = flat_state(processor.reset_sregs, start.cr0, start.cr3, start.cr4, start.efer)
    vcpu.set_sregs(sregs)
    vcpu.set_lapic(processor.reset_lapic)
    vcpu.set_regs(rip=start.rip, rsp=start.rsp, rdi=start.rdi, rsi=start.rsi, rflags=RFLAGS)
    vcpu.set_mp_state(uapi.KVM_MP_STATE_RUNNABLE)
