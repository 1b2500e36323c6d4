"""A vCPU's registers as plain objects, packed and unpacked as the kernel lays them out."""

from __future__ import annotations

from struct import Struct

from . import uapi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer

_REGS = Struct(uapi.FORMAT_REGS)
_SEGMENT = Struct(uapi.FORMAT_SEGMENT)
_TABLE = Struct(uapi.FORMAT_DTABLE)
_CONTROL = Struct("<7Q4Q")  # cr0 cr2 cr3 cr4 cr8 efer apic_base, interrupt_bitmap


class _Record:
    """Compare and show by fields; subclasses list them, in the kernel's order, in FIELDS."""

    __slots__ = ()
    FIELDS: tuple[str, ...] = ()

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


def _filled(cls, values):  # type: ignore[no-untyped-def]
    made = cls.__new__(cls)
    for name, value in zip(cls.FIELDS, values, strict=True):
        setattr(made, name, value)
    return made


def _refuse(unknown: dict[str, int]) -> None:
    if unknown:
        raise TypeError(f"no such field: {', '.join(unknown)}")


class Regs(_Record):
    """Hold the general registers, rip and rflags."""

    FIELDS = (
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
        for name in self.FIELDS:
            setattr(self, name, values.pop(name, 0))
        _refuse(values)

    def pack(self) -> bytes:
        """Return the struct kvm_regs."""
        return _REGS.pack(*self.values())

    @classmethod
    def unpack(cls, record: Buffer) -> Regs:
        """Read a struct kvm_regs."""
        return _filled(cls, _REGS.unpack(record))


class Segment(_Record):
    """Hold a segment register with its hidden part; ``limit`` is in bytes."""

    FIELDS = (
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
    l: int
    g: int
    avl: int
    unusable: int

    def __init__(self, **values: int) -> None:
        for name in self.FIELDS:
            setattr(self, name, values.pop(name, 0))
        _refuse(values)

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

    FIELDS = ("base", "limit")
    __slots__ = FIELDS

    def __init__(self, base: int = 0, limit: int = 0) -> None:
        self.base = base
        self.limit = limit


class Sregs(_Record):
    """Hold the segment, descriptor table and control registers."""

    SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
    CONTROL = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")
    FIELDS = (*SEGMENTS, "gdt", "idt", *CONTROL, "interrupt_bitmap")
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
            setattr(made, name, _filled(Segment, _SEGMENT.unpack_from(record, at)))
            at += _SEGMENT.size
        for name in ("gdt", "idt"):
            setattr(made, name, Table(*_TABLE.unpack_from(record, at)))
            at += _TABLE.size
        control = _CONTROL.unpack_from(record, at)
        for name, value in zip(cls.CONTROL, control, strict=False):
            setattr(made, name, value)
        made.interrupt_bitmap = control[len(cls.CONTROL) :]
        return made
