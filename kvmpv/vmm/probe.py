"""Probe what this host's KVM can do by running a small guest: ``python -I -S .../probe.py KVM-FD``.

Prints ``key=value`` lines. A name says nothing about a KVM: one that emulates kernel-mode code
looks like any other until a guest runs on it.
"""

import sys

sys.path.insert(0, __file__.rsplit("/", 3)[0])

import time

from kvmpv import memory
from kvmpv.abi import address_map
from kvmpv.errors import KvmpvError
from kvmpv.kvm import System, exits, uapi
from kvmpv.machine import boot
from kvmpv.machine.machine import CR0, CR4, EFER, RFLAGS, flat_state

PORT = 0x10
ROUNDS = 20000
CODE = 0x10000
DATA = 0x20000

# What Linux does in kernel mode and an emulator may not know. The first part is timed.
LOOP = bytes.fromhex("b9") + ROUNDS.to_bytes(4, "little") + bytes.fromhex("ffc9 75fc e610")
PARTS = {
    "exchange": "48c7c700000200 31c0 31d2 31c9 31db 480fc70f",  # lock-less cmpxchg16b (rdi)
    "fpu": "dbe3 480fae07 480fae0f",  # fninit, fxsave64 (rdi), fxrstor64 (rdi)
    "breakpoint": "cc",  # int3, through the IDT
}

CAPABILITIES = {
    "irqchip": uapi.KVM_CAP_IRQCHIP,
    "split-irqchip": uapi.KVM_CAP_SPLIT_IRQCHIP,
    "sync-regs": uapi.KVM_CAP_SYNC_REGS,
    "immediate-exit": uapi.KVM_CAP_IMMEDIATE_EXIT,
    "irqfd": uapi.KVM_CAP_IRQFD,
    "ioeventfd": uapi.KVM_CAP_IOEVENTFD,
    "signal-msi": uapi.KVM_CAP_SIGNAL_MSI,
    "tsc-deadline": uapi.KVM_CAP_TSC_DEADLINE_TIMER,
    "kvmclock-ctrl": uapi.KVM_CAP_KVMCLOCK_CTRL,
    "binary-stats": uapi.KVM_CAP_BINARY_STATS_FD,
}


def run_code(system: System, ram: memory.GuestMemory, code: bytes) -> tuple[str, float]:
    """Run code in 64-bit kernel mode up to its ``out``; return how it ended, and the seconds."""
    ram.clear()
    boot.write_page_tables(ram)
    ram.write(address_map.GDT, boot.GDT_ENTRIES)
    ram.write(CODE, code)
    # IDT entry 3: an interrupt gate to an "out", right behind the table.
    handler = DATA + 0x1100
    gate = handler & 0xFFFF | 8 << 16 | 0x8E00 << 32 | (handler >> 16 & 0xFFFF) << 48
    ram.write(DATA + 0x1000 + 3 * 16, gate.to_bytes(16, "little"))
    ram.write(handler, bytes.fromhex("e610"))
    with system.create_vm() as vm:
        vm.split_irqchip(0)
        region = ram.regions[0]
        vm.set_memory_slot(0, 0, region.size, region.address)
        with vm.create_vcpu(0) as vcpu:
            vcpu.set_cpuid(system.supported_cpuid())
            sregs = flat_state(vcpu.sregs(), CR0, address_map.PAGE_TABLES, CR4 | 3 << 9, EFER)
            sregs.idt.base, sregs.idt.limit = DATA + 0x1000, 0xFF
            vcpu.set_sregs(sregs)
            vcpu.set_regs(rip=CODE, rsp=DATA + 0x800, rflags=RFLAGS)
            start = time.monotonic()
            error = vcpu.run()
            seconds = time.monotonic() - start
            if error:
                return f"KVM_RUN failed with errno {-error}", seconds
            reason = vcpu.page32[uapi.RUN_EXIT_REASON32]
            return ("" if reason == uapi.KVM_EXIT_IO else exits.describe(vcpu)), seconds


def main(fd: int) -> None:
    """Print what the KVM behind a descriptor can do."""
    system = System(fd)
    missing = [name for name, cap in CAPABILITIES.items() if not system.check_extension(cap)]
    print(f"missing={' '.join(missing)}")
    print(f"max_vcpus={system.check_extension(uapi.KVM_CAP_MAX_VCPUS)}")
    guest_fd = memory.create_memfd("kvmpv-probe", address_map.MEMORY_MIN)
    with memory.map_regions([(0, address_map.MEMORY_MIN, guest_fd, 0)]) as ram:
        outcome, _ = run_code(system, ram, bytes.fromhex("e610"))
        print(f"guest={outcome or 'ok'}")
        outcome, seconds = run_code(system, ram, LOOP)
        print(f"ns_per_instruction={seconds / ROUNDS / 2 * 1e9:.2f}")
        for name, code in PARTS.items():
            prepared = PARTS["exchange"][:14] + code if name == "fpu" else code
            outcome, _ = run_code(system, ram, bytes.fromhex(prepared + "e610"))
            print(f"{name}={outcome or 'ok'}")


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]))
    except KvmpvError as error:
        print(f"error={error}")
