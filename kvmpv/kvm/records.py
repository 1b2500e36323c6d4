"""A vCPU's state as plain objects, packed and unpacked as the kernel lays it out."""

from __future__ import annotations

from struct import Struct

from . import uapi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import ClassVar

    from typing_extensions import Buffer

_REGS = Struct(uapi.FORMAT_REGS)
_SEGMENT = Struct(uapi.FORMAT_SEGMENT)
_TABLE = Struct(uapi.FORMAT_DTABLE)
_FPU = Struct(uapi.FORMAT_FPU)
_DEBUGREGS = Struct(uapi.FORMAT_DEBUGREGS)
_EVENTS = Struct(uapi.FORMAT_VCPU_EVENTS)
_CONTROL = Struct("<7Q4Q")  # cr0 cr2 cr3 cr4 cr8 efer apic_base, interrupt_bitmap


class _Record:
    """Compare and show by fields; subclasses list them, in the kernel's order, in FIELDS."""

    __slots__ = ()
    FIELDS: ClassVar[tuple[str, ...]] = ()

    def values(self) -> tuple[int, ...]:
        """Return the fields in the kernel's order."""
        return tuple([getattr(self, name) for name in self.FIELDS])

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.FIELDS)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        def shown(value: object) -> str:
            return hex(value) if isinstance(value, int) else repr(value)

        fields = ", ".join(f"{name}={shown(getattr(self, name))}" for name in self.FIELDS)
        return f"{type(self).__name__}({fields})"


def _fill(made: _Record, values: Iterable[object]) -> None:
    for name, value in zip(made.FIELDS, values, strict=True):
        setattr(made, name, value)


def _accept(made: _Record, values: dict[str, int]) -> None:
    for name in made.FIELDS:
        setattr(made, name, values.pop(name, 0))
    if values:
        raise TypeError(f"{type(made).__name__} has no field {', '.join(values)}")


class Regs(_Record):
    """Hold the general registers, rip and rflags."""

    FIELDS: ClassVar[tuple[str, ...]] = (
        "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11",
        "r12", "r13", "r14", "r15", "rip", "rflags",
    )  # fmt: skip
    __slots__ = FIELDS

    rax: int
    rbx: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    rsp: int
    rbp: int
    r8: int
    r9: int
    r10: int
    r11: int
    r12: int
    r13: int
    r14: int
    r15: int
    rip: int
    rflags: int

    def __init__(self, **values: int) -> None:
        _accept(self, values)

    def pack(self) -> bytes:
        """Return the struct kvm_regs."""
        return _REGS.pack(*self.values())

    @classmethod
    def unpack(cls, record: Buffer) -> Regs:
        """Read a struct kvm_regs."""
        made = cls()
        _fill(made, _REGS.unpack(record))
        return made


class Segment(_Record):
    """Hold a segment register with its hidden part; ``limit`` is in bytes."""

    FIELDS: ClassVar[tuple[str, ...]] = (
        "base", "limit", "selector", "type", "present", "dpl", "db", "s", "l", "g", "avl",
        "unusable",
    )  # fmt: skip
    __slots__ = FIELDS

    base: int
    limit: int
    selector: int
    type: int
    present: int
    dpl: int
    db: int
    s: int
    l: int  # noqa: E741 (the kernel's name, and the processor's)
    g: int
    avl: int
    unusable: int

    def __init__(self, **values: int) -> None:
        _accept(self, values)

    @classmethod
    def flat_code64(cls, selector: int = 0x8) -> Segment:
        """Make a 64-bit code segment of privilege 0."""
        return cls(selector=selector, limit=0xFFFFFFFF, type=11, present=1, s=1, l=1, g=1)

    @classmethod
    def flat_code32(cls, selector: int = 0x8) -> Segment:
        """Make a 32-bit code segment over all 4 GiB, of privilege 0."""
        return cls(selector=selector, limit=0xFFFFFFFF, type=11, present=1, s=1, db=1, g=1)

    @classmethod
    def flat_data(cls, selector: int = 0x10) -> Segment:
        """Make a writable data segment over all 4 GiB, of privilege 0."""
        return cls(selector=selector, limit=0xFFFFFFFF, type=3, present=1, s=1, db=1, g=1)


class Table(_Record):
    """Hold where a descriptor table lies: ``limit`` is its last byte's offset."""

    FIELDS: ClassVar[tuple[str, ...]] = ("base", "limit")
    __slots__ = FIELDS

    def __init__(self, base: int = 0, limit: int = 0) -> None:
        self.base = base
        self.limit = limit


class Sregs(_Record):
    """Hold the segment, descriptor table and control registers."""

    SEGMENTS: ClassVar[tuple[str, ...]] = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
    CONTROL: ClassVar[tuple[str, ...]] = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")
    FIELDS: ClassVar[tuple[str, ...]] = (*SEGMENTS, "gdt", "idt", *CONTROL, "interrupt_bitmap")
    __slots__ = FIELDS

    cs: Segment
    ds: Segment
    es: Segment
    fs: Segment
    gs: Segment
    ss: Segment
    tr: Segment
    ldt: Segment
    gdt: Table
    idt: Table
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    cr8: int
    efer: int
    apic_base: int
    interrupt_bitmap: tuple[int, ...]

    def pack(self) -> bytes:
        """Return the struct kvm_sregs."""
        parts = [_SEGMENT.pack(*getattr(self, name).values()) for name in self.SEGMENTS]
        parts += [_TABLE.pack(table.base, table.limit) for table in (self.gdt, self.idt)]
        control = [getattr(self, name) for name in self.CONTROL]
        return b"".join(parts) + _CONTROL.pack(*control, *self.interrupt_bitmap)

    @classmethod
    def unpack(cls, record: Buffer) -> Sregs:
        """Read a struct kvm_sregs."""
        made = cls()
        at = 0
        for name in cls.SEGMENTS:
            segment = Segment()
            _fill(segment, _SEGMENT.unpack_from(record, at))
            setattr(made, name, segment)
            at += _SEGMENT.size
        for name in ("gdt", "idt"):
            setattr(made, name, Table(*_TABLE.unpack_from(record, at)))
            at += _TABLE.size
        control = _CONTROL.unpack_from(record, at)
        for name, value in zip(cls.CONTROL, control, strict=False):
            setattr(made, name, value)
        made.interrupt_bitmap = control[len(cls.CONTROL) :]
        return made


class Fpu(_Record):
    """Hold the x87 and SSE registers: ``fpr`` is 8 times 16 bytes, ``xmm`` 16 times 16.

    KVM neither fills nor takes ``mxcsr`` here: it is in Vcpu.xsave(), at byte 24.
    """

    FIELDS: ClassVar[tuple[str, ...]] = (
        "fpr", "fcw", "fsw", "ftwx", "last_opcode", "last_ip", "last_dp", "xmm", "mxcsr",
    )  # fmt: skip
    __slots__ = FIELDS

    fpr: bytes
    fcw: int
    fsw: int
    ftwx: int
    last_opcode: int
    last_ip: int
    last_dp: int
    xmm: bytes
    mxcsr: int

    def pack(self) -> bytes:
        """Return the struct kvm_fpu."""
        return _FPU.pack(*[getattr(self, name) for name in self.FIELDS])

    @classmethod
    def unpack(cls, record: Buffer) -> Fpu:
        """Read a struct kvm_fpu."""
        made = cls()
        _fill(made, _FPU.unpack(record))
        return made


class DebugRegs(_Record):
    """Hold the guest's own debug registers; ``db`` are the four addresses."""

    FIELDS: ClassVar[tuple[str, ...]] = ("db", "dr6", "dr7", "flags")
    __slots__ = FIELDS

    db: tuple[int, ...]
    dr6: int
    dr7: int
    flags: int

    def pack(self) -> bytes:
        """Return the struct kvm_debugregs."""
        return _DEBUGREGS.pack(*self.db, self.dr6, self.dr7, self.flags)

    @classmethod
    def unpack(cls, record: Buffer) -> DebugRegs:
        """Read a struct kvm_debugregs."""
        made = cls()
        values = _DEBUGREGS.unpack(record)
        made.db = values[:4]
        made.dr6, made.dr7, made.flags = values[4:]
        return made


class Events(_Record):
    """Hold what is pending at a vCPU: exception, interrupt, NMI, SMI, triple fault.

    ``flags`` (``KVM_VCPUEVENT_VALID_*``) say which optional fields count when it is written.
    """

    FIELDS: ClassVar[tuple[str, ...]] = (
        "exception_injected", "exception_nr", "exception_has_error_code", "exception_pending",
        "exception_error_code",
        "interrupt_injected", "interrupt_nr", "interrupt_soft", "interrupt_shadow",
        "nmi_injected", "nmi_pending", "nmi_masked",
        "sipi_vector", "flags",
        "smi_smm", "smi_pending", "smi_inside_nmi", "smi_latched_init",
        "triple_fault_pending", "exception_has_payload", "exception_payload",
    )  # fmt: skip
    __slots__ = FIELDS

    exception_injected: int
    exception_nr: int
    exception_has_error_code: int
    exception_pending: int
    exception_error_code: int
    interrupt_injected: int
    interrupt_nr: int
    interrupt_soft: int
    interrupt_shadow: int
    nmi_injected: int
    nmi_pending: int
    nmi_masked: int
    sipi_vector: int
    flags: int
    smi_smm: int
    smi_pending: int
    smi_inside_nmi: int
    smi_latched_init: int
    triple_fault_pending: int
    exception_has_payload: int
    exception_payload: int

    def __init__(self, **values: int) -> None:
        _accept(self, values)

    def pack(self) -> bytes:
        """Return the struct kvm_vcpu_events."""
        return _EVENTS.pack(*self.values())

    @classmethod
    def unpack(cls, record: Buffer) -> Events:
        """Read a struct kvm_vcpu_events."""
        made = cls()
        _fill(made, _EVENTS.unpack(record))
        return made
