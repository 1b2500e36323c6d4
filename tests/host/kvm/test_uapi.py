"""Hold every number, format and offset of kvmpv.kvm.uapi against the C compiler's <linux/kvm.h>."""

from __future__ import annotations

import re
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

from kvmpv.kvm import uapi

if TYPE_CHECKING:
    from pathlib import Path

SEGMENT = "base limit selector type present dpl db s l g avl unusable"
REGS = "rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags"

# Format -> (C structure, its members in the format's order, whether the format is all of it).
FORMATS = {
    "USERSPACE_MEMORY_REGION": (
        "kvm_userspace_memory_region",
        "slot flags guest_phys_addr memory_size userspace_addr",
        True,
    ),
    "REGS": ("kvm_regs", REGS, True),
    "SEGMENT": ("kvm_segment", SEGMENT, True),
    "DTABLE": ("kvm_dtable", "base limit", True),
    "FPU": ("kvm_fpu", "fpr fcw fsw ftwx last_opcode last_ip last_dp xmm mxcsr", True),
    "MSR_ENTRY": ("kvm_msr_entry", "index data", True),
    "MSRS": ("kvm_msrs", "nmsrs", True),
    "MSR_LIST": ("kvm_msr_list", "nmsrs", True),
    "MSR_FILTER_RANGE": ("kvm_msr_filter_range", "flags nmsrs base bitmap", True),
    "CPUID2": ("kvm_cpuid2", "nent", True),
    "CPUID_ENTRY2": ("kvm_cpuid_entry2", "function index flags eax ebx ecx edx", True),
    "ENABLE_CAP": ("kvm_enable_cap", "cap flags args[0] args[1] args[2] args[3]", True),
    "MSI": ("kvm_msi", "address_lo address_hi data flags devid", True),
    "IRQFD": ("kvm_irqfd", "fd gsi flags resamplefd", True),
    "IOEVENTFD": ("kvm_ioeventfd", "datamatch addr len fd flags", True),
    "IRQ_ROUTING": ("kvm_irq_routing", "nr flags", True),
    "IRQ_ROUTING_ENTRY_IRQCHIP": (
        "kvm_irq_routing_entry",
        "gsi type flags u.irqchip.irqchip u.irqchip.pin",
        True,
    ),
    "IRQ_ROUTING_ENTRY_MSI": (
        "kvm_irq_routing_entry",
        "gsi type flags u.msi.address_lo u.msi.address_hi u.msi.data",
        True,
    ),
    "IRQ_LEVEL": ("kvm_irq_level", "irq level", True),
    "PIT_CONFIG": ("kvm_pit_config", "flags", True),
    "CLOCK_DATA": ("kvm_clock_data", "clock flags realtime host_tsc", True),
    "DIRTY_LOG": ("kvm_dirty_log", "slot dirty_bitmap", True),
    "CLEAR_DIRTY_LOG": (
        "kvm_clear_dirty_log",
        "slot num_pages first_page dirty_bitmap",
        True,
    ),
    "MP_STATE": ("kvm_mp_state", "mp_state", True),
    "TRANSLATION": (
        "kvm_translation",
        "linear_address physical_address valid writeable usermode",
        True,
    ),
    "GUEST_DEBUG": (
        "kvm_guest_debug",
        "control " + " ".join(f"arch.debugreg[{n}]" for n in range(8)),
        True,
    ),
    "DEBUGREGS": ("kvm_debugregs", "db[0] db[1] db[2] db[3] dr6 dr7 flags", True),
    "XCRS": ("kvm_xcrs", "nr_xcrs flags", False),
    "XCR": ("kvm_xcr", "xcr value", True),
    "VCPU_EVENTS": (
        "kvm_vcpu_events",
        "exception.injected exception.nr exception.has_error_code exception.pending "
        "exception.error_code interrupt.injected interrupt.nr interrupt.soft interrupt.shadow "
        "nmi.injected nmi.pending nmi.masked sipi_vector flags smi.smm smi.pending "
        "smi.smm_inside_nmi smi.latched_init triple_fault.pending exception_has_payload "
        "exception_payload",
        True,
    ),
    "INTERRUPT": ("kvm_interrupt", "irq", True),
    "STATS_HEADER": (
        "kvm_stats_header",
        "flags name_size num_desc id_offset desc_offset data_offset",
        True,
    ),
    "STATS_DESC": ("kvm_stats_desc", "flags exponent size offset bucket_size", True),
}
# A byte array in the header, of which the kernel wants a 64-bit set: checked by hand below.
FORMATS_BY_HAND = {"SIGNAL_MASK"}

SIZES = {
    "XSAVE": "kvm_xsave",
    "LAPIC": "kvm_lapic_state",
    "SREGS": "kvm_sregs",
    "XCRS": "kvm_xcrs",
    "MSR_FILTER": "kvm_msr_filter",
    "IRQCHIP": "kvm_irqchip",
    "PIT_STATE2": "kvm_pit_state2",
    "IRQ_ROUTING_ENTRY": "kvm_irq_routing_entry",
}

RUN = {
    "REQUEST_INTERRUPT_WINDOW8": "request_interrupt_window",
    "IMMEDIATE_EXIT8": "immediate_exit",
    "CR8_64": "cr8",
    "APIC_BASE64": "apic_base",
    "VALID_REGS64": "kvm_valid_regs",
    "DIRTY_REGS64": "kvm_dirty_regs",
    "EXIT_REASON32": "exit_reason",
    "READY_FOR_INTERRUPT8": "ready_for_interrupt_injection",
    "IF_FLAG8": "if_flag",
    "UNION": "hw",
    "UNION64": "hw",
    "HW_REASON64": "hw.hardware_exit_reason",
    "FAIL_ENTRY_REASON64": "fail_entry.hardware_entry_failure_reason",
    "FAIL_ENTRY_CPU32": "fail_entry.cpu",
    "EX_EXCEPTION32": "ex.exception",
    "EX_ERROR_CODE32": "ex.error_code",
    "IO_WORD64": "io.direction",
    "IO_DIRECTION8": "io.direction",
    "IO_SIZE8": "io.size",
    "IO_PORT8": "io.port",
    "IO_COUNT32": "io.count",
    "IO_DATA_OFFSET64": "io.data_offset",
    "DEBUG_EXCEPTION32": "debug.arch.exception",
    "DEBUG_PC64": "debug.arch.pc",
    "DEBUG_DR6_64": "debug.arch.dr6",
    "DEBUG_DR7_64": "debug.arch.dr7",
    "MMIO_ADDRESS64": "mmio.phys_addr",
    "MMIO_DATA64": "mmio.data",
    "MMIO_DATA8": "mmio.data",
    "MMIO_LENGTH32": "mmio.len",
    "MMIO_IS_WRITE8": "mmio.is_write",
    "HYPERCALL_NR64": "hypercall.nr",
    "HYPERCALL_ARGS64": "hypercall.args",
    "HYPERCALL_RET64": "hypercall.ret",
    "HYPERCALL_LONGMODE32": "hypercall.longmode",
    "INTERNAL_SUBERROR32": "internal.suberror",
    "INTERNAL_NDATA32": "internal.ndata",
    "INTERNAL_DATA64": "internal.data",
    "EMULATION_FLAGS64": "emulation_failure.flags",
    "EMULATION_INSN_SIZE8": "emulation_failure.insn_size",
    "EMULATION_INSN_BYTES8": "emulation_failure.insn_bytes",
    "SYSTEM_EVENT_TYPE32": "system_event.type",
    "SYSTEM_EVENT_NDATA32": "system_event.ndata",
    "SYSTEM_EVENT_DATA64": "system_event.data",
    "EOI_VECTOR8": "eoi.vector",
    "MSR_ERROR8": "msr.error",
    "MSR_REASON32": "msr.reason",
    "MSR_INDEX32": "msr.index",
    "MSR_DATA64": "msr.data",
    "NOTIFY_FLAGS32": "notify.flags",
    "REGS": "s.regs.regs",
    "SREGS": "s.regs.sregs",
    "EVENTS": "s.regs.events",
    "CS_BASE64": "s.regs.sregs.cs.base",
    "CS_L8": "s.regs.sregs.cs.l",
    "CS_DB8": "s.regs.sregs.cs.db",
    "SS_DPL8": "s.regs.sregs.ss.dpl",
    "CR0_64": "s.regs.sregs.cr0",
    "CR2_64": "s.regs.sregs.cr2",
    "CR3_64": "s.regs.sregs.cr3",
    "CR4_64": "s.regs.sregs.cr4",
    "EFER64": "s.regs.sregs.efer",
} | {
    # A name that ends in a digit is set apart from the view's width by an underscore.
    f"{register.upper()}{'_' if register[-1].isdigit() else ''}64": f"s.regs.regs.{register}"
    for register in REGS.split()
}


def named(prefix: str) -> dict[str, int | str]:
    found = vars(uapi).items()
    return {n.removeprefix(prefix): v for n, v in found if n.startswith(prefix)}


def fields(layout: str) -> list[tuple[int, int]]:
    """Return offset and size of each value of a struct format."""
    found = []
    at = 0
    for count, code in re.findall(r"(\d*)([a-zA-Z])", layout):
        repeat = int(count or 1)
        size = struct.calcsize("<" + code)
        if code == "s":
            found.append((at, repeat))
        elif code != "x":
            found += [(at + n * size, size) for n in range(repeat)]
        at += repeat * size
    return found


def questions() -> dict[str, str]:
    """Return a C expression for each key that a test below asks for."""
    asked = {f"KVM_{name}": f"KVM_{name}" for name in named("KVM_")}
    for owner, members, _ in FORMATS.values():
        asked[f"sizeof {owner}"] = f"sizeof(struct {owner})"
        for member in members.split():
            asked[f"{owner}.{member}"] = f"offsetof(struct {owner}, {member})"
            asked[f"{owner}.{member}:"] = f"sizeof(((struct {owner} *)0)->{member})"
    asked |= {f"sizeof {owner}": f"sizeof(struct {owner})" for owner in SIZES.values()}
    asked |= {f"run {name}": f"offsetof(struct kvm_run, {m})" for name, m in RUN.items()}
    asked["sigset"] = "offsetof(struct kvm_signal_mask, sigset)"
    asked["ranges"] = "offsetof(struct kvm_msr_filter, ranges)"
    asked["chip"] = "offsetof(struct kvm_irqchip, chip)"
    asked["unit shift"] = "KVM_STATS_UNIT_SHIFT"
    return asked


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Compile one program that prints all answers."""
    folder: Path = tmp_path_factory.mktemp("uapi")
    lines = [f'printf("%lld\\n", (long long)({c}));' for c in questions().values()]
    source = folder / "uapi.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <linux/kvm.h>\n"
        "int main(void)\n{\n" + "\n".join(lines) + "\nreturn 0;\n}\n"
    )
    program = folder / "uapi"
    subprocess.run(["cc", "-std=gnu11", "-o", program, source], check=True, timeout=60)
    done = subprocess.run([program], check=True, capture_output=True, text=True, timeout=10)
    return dict(zip(questions(), map(int, done.stdout.split()), strict=True))


def test_constants_are_the_headers(header: dict[str, int]) -> None:
    ours = {f"KVM_{name}": value for name, value in named("KVM_").items()}
    assert len(ours) > 200
    theirs = {name: header[name] & 0xFFFFFFFF for name in ours}
    assert ours == theirs


def test_every_format_is_held() -> None:
    assert set(named("FORMAT_")) == set(FORMATS) | FORMATS_BY_HAND


@pytest.mark.parametrize("name", FORMATS)
def test_format_has_the_structures_layout(name: str, header: dict[str, int]) -> None:
    owner, members, whole = FORMATS[name]
    layout = str(named("FORMAT_")[name])
    theirs = [
        (header[f"{owner}.{member}"], header[f"{owner}.{member}:"]) for member in members.split()
    ]
    assert fields(layout) == theirs
    if whole:
        assert struct.calcsize(layout) == header[f"sizeof {owner}"]


def test_every_size_is_the_structures(header: dict[str, int]) -> None:
    owners = SIZES | {name: FORMATS[name][0] for name in named("SIZE_") if name in FORMATS}
    assert set(owners) >= set(named("SIZE_"))
    assert named("SIZE_") == {name: header[f"sizeof {owners[name]}"] for name in named("SIZE_")}


def test_every_place_in_the_run_page_is_the_structures(header: dict[str, int]) -> None:
    ours = {}
    for name, index in named("RUN_").items():
        width = re.search(r"(?<!\d)(8|32|64)$", name)
        ours[name] = int(index) * (int(width[1]) // 8 if width else 1)
    assert ours == {name: header[f"run {name}"] for name in RUN}


def test_layouts_that_modules_know_by_heart(header: dict[str, int]) -> None:
    assert fields(uapi.FORMAT_SIGNAL_MASK)[1][0] == header["sigset"]
    assert header["ranges"] == 8
    assert header["chip"] == 8
    assert header["unit shift"] == uapi.KVM_STATS_UNIT_SHIFT


def test_port_word_is_the_exits_fields_in_one() -> None:
    word = uapi.port_word(0x4B50, 4)
    direction, size, port, count = struct.unpack("<BBHI", word.to_bytes(8, "little"))
    assert (direction, size, port, count) == (uapi.KVM_EXIT_IO_OUT, 4, 0x4B50, 1)
