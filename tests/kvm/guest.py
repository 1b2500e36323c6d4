"""A guest of a few bytes of machine code: 64-bit, privilege 0, interrupts off, identity-mapped.

    0x1000 code    0x2000 interrupt handler    0x4000 GDT    0x5000 IDT    0x8000 top of the stack
    0x9000 page tables: the first 16 MiB and the LAPIC    0x100000 data, to the test's liking

Memory ends at 2 MiB: what is mapped beyond is MMIO.
"""

from __future__ import annotations

import mmap
import signal
import struct
import threading
from typing import TYPE_CHECKING

from kvmpv.kvm import Segment, Table, Vcpu, Vm, _ioctl, kick_signal, uapi

if TYPE_CHECKING:
    from typing import Self

    from kvmpv.kvm import System

CODE, HANDLER, GDT, IDT, STACK, TABLES, DATA = (
    0x1000, 0x2000, 0x4000, 0x5000, 0x8000, 0x9000, 0x100000,
)  # fmt: skip
MEMORY = 0x200000
MMIO = 0x300000
LAPIC = 0xFEE00000
VECTOR = 0x40
SIGNAL = signal.SIGRTMIN + 5
PATIENCE = 10.0  # seconds that a guest may live; a test's guest takes milliseconds

# mov dword [0xfee000f0], 0x1ff: switch the LAPIC on (moffs takes 64 bits of address)
LAPIC_ON = bytes.fromhex("b8 ff010000  a3 f000e0fe00000000")
# mov dword [0xfee000b0], 0: end of interrupt; iretq
EOI_IRET = bytes.fromhex("31c0  a3 b000e0fe00000000  48cf")


class Guest:
    """Own a VM with one vCPU and its memory; ``irqchip`` is "none", "split" or "full"."""

    def __init__(
        self, system: System, code: bytes, irqchip: str = "none", handler: bytes = b""
    ) -> None:
        self.memory = mmap.mmap(-1, MEMORY)
        self.address = _ioctl.address(self.memory)
        self.vm: Vm = system.create_vm()
        if irqchip == "split":
            self.vm.split_irqchip()
        elif irqchip == "full":
            self.vm.create_irqchip()
        self.vm.set_memory_slot(0, 0, MEMORY, self.address)
        self.vcpu: Vcpu = self.vm.create_vcpu(0)
        self.vcpu.set_cpuid(system.supported_cpuid())
        self.load(CODE, code)
        self.load(HANDLER, handler)
        self._tables()
        self._long_mode()
        # A guest that waits for an interrupt which never comes would wait for ever.
        kick_signal(SIGNAL)
        args = (threading.get_native_id(), SIGNAL)
        self._watchdog = threading.Timer(PATIENCE, self.vcpu.kick, args)
        self._watchdog.start()

    def load(self, where: int, what: bytes) -> None:
        """Copy bytes into the guest's memory."""
        self.memory[where : where + len(what)] = what

    def _tables(self) -> None:
        pdpt, low, high = TABLES + 0x1000, TABLES + 0x2000, TABLES + 0x3000
        large = 0x83  # present, writable, 2 MiB
        self.load(TABLES, struct.pack("<Q", pdpt | 3))
        self.load(pdpt, struct.pack("<4Q", low | 3, 0, 0, high | 3))
        self.load(low, struct.pack("<8Q", *(n << 21 | large for n in range(8))))
        self.load(high + 8 * (LAPIC >> 21 & 511), struct.pack("<Q", LAPIC & -0x200000 | large))
        self.load(GDT, struct.pack("<3Q", 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF))
        gate = struct.pack("<HHHHQ", HANDLER & 0xFFFF, 8, 0x8E00, 0, 0)
        self.load(IDT + 16 * VECTOR, gate)

    def _long_mode(self) -> None:
        sregs = self.vcpu.sregs()
        sregs.cs = Segment.flat_code64()
        sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = Segment.flat_data()
        sregs.gdt, sregs.idt = Table(GDT, 23), Table(IDT, 0xFFF)
        sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = 0x80050033, TABLES, 0x220, 0x500
        self.vcpu.set_sregs(sregs)
        self.vcpu.set_regs(rip=CODE, rsp=STACK, rflags=2)

    def exit_reason(self) -> int:
        """Run the vCPU and return why it left the guest."""
        assert self.vcpu.run() == 0
        return self.vcpu.page32[uapi.RUN_EXIT_REASON32]

    def port(self) -> tuple[int, int]:
        """Run to a port write of one value; return port and value."""
        assert self.exit_reason() == uapi.KVM_EXIT_IO
        page8, page64 = self.vcpu.page8, self.vcpu.page64
        assert page8[uapi.RUN_IO_DIRECTION8] == uapi.KVM_EXIT_IO_OUT
        at = page64[uapi.RUN_IO_DATA_OFFSET64]
        value = int.from_bytes(page8[at : at + page8[uapi.RUN_IO_SIZE8]], "little")
        return page64[uapi.RUN_IO_WORD64] >> 16 & 0xFFFF, value

    def close(self) -> None:
        """Let everything go, in the order that KVM likes."""
        self._watchdog.cancel()
        self._watchdog.join()
        self.vcpu.close()
        self.vm.close()
        self.memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
