"""The crash report: what a guest's author needs to see of its end."""

from __future__ import annotations

from kvmpv.errors import KvmError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from kvmpv.machine.machine import Machine
    from kvmpv.machine.processor import Processor

CODE_BEFORE: Final = 16
CODE_AFTER: Final = 32

# What KVM's emulator stumbles over: opcode bytes behind the prefixes, and the feature whose absence
# keeps a guest from using them.
STUMBLES: Final = (
    (b"\x0f\x01\xca", "smap"),
    (b"\x0f\x01\xcb", "smap"),
    (b"\x0f\x01\xd0", "xsave"),
    (b"\x0f\x01\xd1", "xsave"),
    (b"\x0f\x01\xee", "pku"),
    (b"\x0f\x01\xef", "pku"),
    (b"\x0f\x38\x82", "invpcid"),
    (b"\x0f\x38\xf0", "movbe"),
    (b"\x0f\x38\xf1", "movbe"),
    (b"\x0f\xae", "xsave"),
    (b"\x0f\xc7", "cx16"),
)
PREFIXES: Final = frozenset((0x66, 0xF0, 0xF2, 0xF3, *range(0x40, 0x50)))


def feature_to_hide(code: bytes) -> str:
    """Return the CPUID feature whose hiding avoids an instruction, or an empty string."""
    at = 0
    while at < len(code) and code[at] in PREFIXES:
        at += 1
    for opcode, feature in STUMBLES:
        if code.startswith(opcode, at):
            return feature
    return ""


def code_at(machine: Machine, processor: Processor) -> tuple[bytes, bytes]:
    """Return the bytes before and from the processor's RIP on; empty where nothing is mapped."""
    rip = processor.vcpu.regs().rip
    try:
        gpa = processor.vcpu.translate(rip)
    except KvmError:
        gpa = None
    if gpa is None:
        return b"", b""
    before = machine.memory.slice(gpa - CODE_BEFORE, CODE_BEFORE)
    after = machine.memory.slice(gpa, min(CODE_AFTER, 4096 - (gpa & 4095)))
    return bytes(before or b""), bytes(after or b"")


def headline(machine: Machine) -> str:
    """Return the end in one line, with the remedy where one is known."""
    line = machine.message
    if machine.kind == "stuck" and machine.culprit is not None:
        code = code_at(machine, machine.culprit)[1]
        if code and "bytes" not in line:
            line += f", at instruction bytes {code[:15].hex(' ')}"
        feature = feature_to_hide(code)
        if feature:
            line += f"; try --cpu host,-{feature}"
    return line


def write_report(machine: Machine, name: str, console: bytes) -> str:
    """Return the full report as text."""
    parts = [
        f"kvmpv crash report of domain {name}",
        f"reason: {machine.kind}: {printable(headline(machine))}",
    ]
    if machine.detail:
        parts += ["", machine.detail]
    if machine.culprit is not None:
        parts += ["", *_registers(machine, machine.culprit)]
    lines = console.decode("utf-8", "replace").replace("\r", "").rstrip("\n").split("\n")
    parts += ["", "last console lines:", *(f"  {printable(line)}" for line in lines[-60:])]
    return "\n".join(parts) + "\n"


def _registers(machine: Machine, processor: Processor) -> list[str]:
    regs, sregs = processor.vcpu.regs(), processor.vcpu.sregs()
    lines = [f"vCPU {processor.index}:"]
    pairs = [
        f"{name:>6}={value:016x}" for name, value in zip(regs.FIELDS, regs.values(), strict=True)
    ]
    lines += [" ".join(pairs[at : at + 4]) for at in range(0, len(pairs), 4)]
    control = [
        f"{name:>6}={getattr(sregs, name):016x}" for name in ("cr0", "cr2", "cr3", "cr4", "efer")
    ]
    lines += [" ".join(control[:4]), control[4]]
    for name in ("cs", "ss", "ds", "es", "fs", "gs", "tr"):
        segment = getattr(sregs, name)
        lines.append(
            f"{name:>6}={segment.selector:04x} base={segment.base:016x} limit={segment.limit:08x}"
            f" type={segment.type} dpl={segment.dpl} l={segment.l} db={segment.db}"
        )
    before, after = code_at(machine, processor)
    lines.append(f"  code: {before.hex(' ')} <{after[:1].hex()}> {after[1:].hex(' ')}")
    return lines
