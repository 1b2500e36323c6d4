"""Put a vCPU's last exit into words, for reports."""

from __future__ import annotations

from . import uapi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from .records import Regs, Sregs
    from .vcpu import Vcpu

NAMES: Final = {
    uapi.KVM_EXIT_UNKNOWN: "unknown",
    uapi.KVM_EXIT_EXCEPTION: "exception",
    uapi.KVM_EXIT_IO: "port",
    uapi.KVM_EXIT_HYPERCALL: "hypercall",
    uapi.KVM_EXIT_DEBUG: "debug",
    uapi.KVM_EXIT_HLT: "halt",
    uapi.KVM_EXIT_MMIO: "mmio",
    uapi.KVM_EXIT_IRQ_WINDOW_OPEN: "irq-window",
    uapi.KVM_EXIT_SHUTDOWN: "shutdown",
    uapi.KVM_EXIT_FAIL_ENTRY: "fail-entry",
    uapi.KVM_EXIT_INTR: "interrupted",
    uapi.KVM_EXIT_SET_TPR: "set-tpr",
    uapi.KVM_EXIT_TPR_ACCESS: "tpr-access",
    uapi.KVM_EXIT_NMI: "nmi",
    uapi.KVM_EXIT_INTERNAL_ERROR: "internal-error",
    uapi.KVM_EXIT_WATCHDOG: "watchdog",
    uapi.KVM_EXIT_SYSTEM_EVENT: "system-event",
    uapi.KVM_EXIT_IOAPIC_EOI: "ioapic-eoi",
    uapi.KVM_EXIT_HYPERV: "hyperv",
    uapi.KVM_EXIT_X86_RDMSR: "rdmsr",
    uapi.KVM_EXIT_X86_WRMSR: "wrmsr",
    uapi.KVM_EXIT_DIRTY_RING_FULL: "dirty-ring-full",
    uapi.KVM_EXIT_AP_RESET_HOLD: "ap-reset-hold",
    uapi.KVM_EXIT_X86_BUS_LOCK: "bus-lock",
    uapi.KVM_EXIT_XEN: "xen",
    uapi.KVM_EXIT_NOTIFY: "notify",
}

_SUBERRORS: Final = {
    uapi.KVM_INTERNAL_ERROR_EMULATION: "an instruction that KVM cannot emulate",
    uapi.KVM_INTERNAL_ERROR_SIMUL_EX: "simultaneous exceptions",
    uapi.KVM_INTERNAL_ERROR_DELIVERY_EV: "an exit while an event was delivered",
    uapi.KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON: "an exit that KVM does not know",
}
_SYSTEM_EVENTS: Final = {
    uapi.KVM_SYSTEM_EVENT_SHUTDOWN: "shutdown",
    uapi.KVM_SYSTEM_EVENT_RESET: "reset",
    uapi.KVM_SYSTEM_EVENT_CRASH: "crash",
    uapi.KVM_SYSTEM_EVENT_WAKEUP: "wakeup",
    uapi.KVM_SYSTEM_EVENT_SUSPEND: "suspend",
    uapi.KVM_SYSTEM_EVENT_SEV_TERM: "end of an encrypted guest",
}
_MSR_REASONS: Final = (
    (uapi.KVM_MSR_EXIT_REASON_INVAL, "invalid value"),
    (uapi.KVM_MSR_EXIT_REASON_UNKNOWN, "unknown to KVM"),
    (uapi.KVM_MSR_EXIT_REASON_FILTER, "filtered"),
)


def name(reason: int) -> str:
    """Return a short name for a KVM_EXIT_* number."""
    return NAMES.get(reason, f"exit-{reason}")


def describe(vcpu: Vcpu) -> str:
    """Return one line that says why the vCPU last left the guest."""
    reason = vcpu.page32[uapi.RUN_EXIT_REASON32]
    details = _DETAILS.get(reason)
    return f"{name(reason)}: {details(vcpu)}" if details else name(reason)


def emulation_bytes(vcpu: Vcpu) -> bytes:
    """Return the bytes of the instruction that KVM could not emulate; none if it does not say."""
    page8, page32 = vcpu.page8, vcpu.page32
    if (
        page32[uapi.RUN_EXIT_REASON32] != uapi.KVM_EXIT_INTERNAL_ERROR
        or page32[uapi.RUN_INTERNAL_SUBERROR32] != uapi.KVM_INTERNAL_ERROR_EMULATION
        or page32[uapi.RUN_INTERNAL_NDATA32] < 3
        or not vcpu.page64[uapi.RUN_EMULATION_FLAGS64]
        & uapi.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES
    ):
        return b""
    start = uapi.RUN_EMULATION_INSN_BYTES8
    return bytes(page8[start : start + min(page8[uapi.RUN_EMULATION_INSN_SIZE8], 15)])


def registers(regs: Regs, sregs: Sregs) -> str:
    """Return general, control and segment registers as lines of text, four to a line."""
    cells = [f"{field:>6}={getattr(regs, field):016x}" for field in regs.FIELDS]
    cells += [f"{field:>6}={getattr(sregs, field):016x}" for field in ("cr0", "cr2", "cr3", "cr4")]
    cells += [f"{field:>6}={getattr(sregs, field):016x}" for field in ("cr8", "efer")]
    lines = [" ".join(cells[at : at + 4]) for at in range(0, len(cells), 4)]
    for field in sregs.SEGMENTS:
        s = getattr(sregs, field)
        kind = f"type={s.type:x} dpl={s.dpl} l={s.l} db={s.db} g={s.g} present={s.present}"
        lines.append(f"{field:>6}={s.selector:04x} base={s.base:x} limit={s.limit:x} {kind}")
    for field in ("gdt", "idt"):
        table = getattr(sregs, field)
        lines.append(f"{field:>6} base={table.base:x} limit={table.limit:x}")
    return "\n".join(lines)


def _port(vcpu: Vcpu) -> str:
    page8 = vcpu.page8
    size = min(page8[uapi.RUN_IO_SIZE8], 8)
    count = vcpu.page32[uapi.RUN_IO_COUNT32]
    port = int.from_bytes(page8[uapi.RUN_IO_PORT8 : uapi.RUN_IO_PORT8 + 2], "little")
    times = f", {count} times" if count != 1 else ""
    if page8[uapi.RUN_IO_DIRECTION8] == uapi.KVM_EXIT_IO_IN:
        return f"read of {size} from {port:#06x}{times}"
    start = vcpu.page64[uapi.RUN_IO_DATA_OFFSET64]
    value = int.from_bytes(page8[start : start + size], "little")
    return f"write of {value:#0{2 + 2 * size}x} to {port:#06x}{times}"


def _mmio(vcpu: Vcpu) -> str:
    length = min(vcpu.page32[uapi.RUN_MMIO_LENGTH32], 8)
    address = vcpu.page64[uapi.RUN_MMIO_ADDRESS64]
    if not vcpu.page8[uapi.RUN_MMIO_IS_WRITE8]:
        return f"read of {length} from {address:#x}"
    start = uapi.RUN_MMIO_DATA8
    value = int.from_bytes(vcpu.page8[start : start + length], "little")
    return f"write of {value:#0{2 + 2 * length}x} to {address:#x}"


def _unknown(vcpu: Vcpu) -> str:
    return f"hardware reason {vcpu.page64[uapi.RUN_HW_REASON64]:#x}"


def _exception(vcpu: Vcpu) -> str:
    vector = vcpu.page32[uapi.RUN_EX_EXCEPTION32]
    return f"vector {vector}, error code {vcpu.page32[uapi.RUN_EX_ERROR_CODE32]:#x}"


def _hypercall(vcpu: Vcpu) -> str:
    first = uapi.RUN_HYPERCALL_ARGS64
    args = ", ".join(f"{vcpu.page64[first + n]:#x}" for n in range(6))
    return f"number {vcpu.page64[uapi.RUN_HYPERCALL_NR64]} ({args})"


def _debug(vcpu: Vcpu) -> str:
    page32, page64 = vcpu.page32, vcpu.page64
    vector = page32[uapi.RUN_DEBUG_EXCEPTION32]
    where = page64[uapi.RUN_DEBUG_PC64]
    return f"vector {vector} at {where:#x}, dr6 {page64[uapi.RUN_DEBUG_DR6_64]:#x}"


def _fail_entry(vcpu: Vcpu) -> str:
    reason = vcpu.page64[uapi.RUN_FAIL_ENTRY_REASON64]
    cpu = vcpu.page32[uapi.RUN_FAIL_ENTRY_CPU32]
    return f"hardware reason {reason:#x} on host CPU {cpu}"


def _internal(vcpu: Vcpu) -> str:
    suberror = vcpu.page32[uapi.RUN_INTERNAL_SUBERROR32]
    text = _SUBERRORS.get(suberror, f"suberror {suberror}")
    code = emulation_bytes(vcpu)
    if code:
        return f"{text}, bytes {code.hex(' ')}"
    first = uapi.RUN_INTERNAL_DATA64
    count = min(vcpu.page32[uapi.RUN_INTERNAL_NDATA32], 16)
    data = " ".join(f"{vcpu.page64[first + n]:#x}" for n in range(count))
    return f"{text}, data {data}" if data else text


def _system_event(vcpu: Vcpu) -> str:
    kind = vcpu.page32[uapi.RUN_SYSTEM_EVENT_TYPE32]
    return _SYSTEM_EVENTS.get(kind, f"type {kind}")


def _eoi(vcpu: Vcpu) -> str:
    return f"vector {vcpu.page8[uapi.RUN_EOI_VECTOR8]}"


def _msr(vcpu: Vcpu) -> str:
    page32 = vcpu.page32
    why = page32[uapi.RUN_MSR_REASON32]
    reasons = ", ".join(text for bit, text in _MSR_REASONS if why & bit)
    text = f"{page32[uapi.RUN_MSR_INDEX32]:#x} ({reasons})"
    if page32[uapi.RUN_EXIT_REASON32] == uapi.KVM_EXIT_X86_WRMSR:
        text += f", value {vcpu.page64[uapi.RUN_MSR_DATA64]:#x}"
    return text


def _notify(vcpu: Vcpu) -> str:
    return f"flags {vcpu.page32[uapi.RUN_NOTIFY_FLAGS32]:#x}"


_DETAILS: Final[dict[int, Callable[[Vcpu], str]]] = {
    uapi.KVM_EXIT_UNKNOWN: _unknown,
    uapi.KVM_EXIT_EXCEPTION: _exception,
    uapi.KVM_EXIT_IO: _port,
    uapi.KVM_EXIT_HYPERCALL: _hypercall,
    uapi.KVM_EXIT_DEBUG: _debug,
    uapi.KVM_EXIT_MMIO: _mmio,
    uapi.KVM_EXIT_FAIL_ENTRY: _fail_entry,
    uapi.KVM_EXIT_INTERNAL_ERROR: _internal,
    uapi.KVM_EXIT_SYSTEM_EVENT: _system_event,
    uapi.KVM_EXIT_IOAPIC_EOI: _eoi,
    uapi.KVM_EXIT_X86_RDMSR: _msr,
    uapi.KVM_EXIT_X86_WRMSR: _msr,
    uapi.KVM_EXIT_NOTIFY: _notify,
}
