"""Count what a domain cost: exits to user space by kind, and what KVM itself counts."""

from __future__ import annotations

from kvmpv import abi
from kvmpv.kvm import exits
from kvmpv.machine._gate import UNKNOWN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from kvmpv.machine.machine import Machine

# What a guest has switched on for each vCPU: MSR, and the bit that says so. Where KVM's own
# paravirtualisation is off, a guest boots all the same, slowly, and nobody sees why.
SWITCHES: Final = {
    "pv_clock": (0x4B564D01, 1),
    "pv_steal_time": (0x4B564D03, 1),
    "pv_eoi": (0x4B564D04, 1),
    "x2apic": (0x1B, 1 << 10),
}

CALLS: Final = {UNKNOWN: "unknown"} | {
    value: name[3:].lower() for name, value in vars(abi).items() if name.startswith("HC_")
}


def counters(machine: Machine) -> dict[str, int]:
    """Return counters by name; the vCPUs' are summed."""
    facts: dict[str, int] = {"exits_to_user_space": 0}
    for processor in machine.processors.values():
        for number, count in processor.calls.items():
            facts["exits_to_user_space"] += count
            key = f"hypercall_{CALLS[number]}"
            facts[key] = facts.get(key, 0) + count
        for reason, count in processor.exits.items():
            facts["exits_to_user_space"] += count
            key = f"exit_{exits.name(reason)}"
            facts[key] = facts.get(key, 0) + count
        for name, value in processor.vcpu.stats().items():
            facts[f"kvm_{name}"] = facts.get(f"kvm_{name}", 0) + value
        msrs = processor.vcpu.msrs([msr for msr, _ in SWITCHES.values()], missing_ok=True)
        for name, (msr, bit) in SWITCHES.items():
            on = bool(msrs.get(msr, 0) & bit)
            facts[f"vcpus_with_{name}"] = facts.get(f"vcpus_with_{name}", 0) + on
    for name, value in machine.vm.stats().items():
        facts[f"kvm_vm_{name}"] = value
    return facts
