"""Count what a domain cost: exits to user space by kind, and what KVM itself counts."""

from __future__ import annotations

from kvmpv import abi
from kvmpv.kvm import exits
from kvmpv.machine.processor import UNKNOWN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from kvmpv.machine.machine import Machine

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
    for name, value in machine.vm.stats().items():
        facts[f"kvm_vm_{name}"] = value
    return facts
