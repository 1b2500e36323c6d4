"""CPUID tables: what a vCPU answers, entry by entry."""

from __future__ import annotations

from struct import Struct

from . import uapi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_HEADER = Struct(uapi.FORMAT_CPUID2)
_ENTRY = Struct(uapi.FORMAT_CPUID_ENTRY2)
_BY_INDEX = uapi.KVM_CPUID_FLAG_SIGNIFCANT_INDEX


class CpuidEntry:
    """Hold one answer: the four registers for a function, and an index where ``flags`` say so."""

    __slots__ = ("eax", "ebx", "ecx", "edx", "flags", "function", "index")

    def __init__(  # the record has that many fields
        self,
        function: int,
        index: int = 0,
        flags: int = 0,
        eax: int = 0,
        ebx: int = 0,
        ecx: int = 0,
        edx: int = 0,
    ) -> None:
        self.function = function
        self.index = index
        self.flags = flags
        self.eax = eax
        self.ebx = ebx
        self.ecx = ecx
        self.edx = edx

    def values(self) -> tuple[int, int, int, int, int, int, int]:
        """Return function, index, flags, eax, ebx, ecx, edx: the record's order."""
        return (
            self.function, self.index, self.flags, self.eax, self.ebx, self.ecx, self.edx,
        )  # fmt: skip

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CpuidEntry) and self.values() == other.values()

    def __hash__(self) -> int:
        return hash(self.values())

    def __repr__(self) -> str:
        return (
            f"CpuidEntry({self.function:#x}, {self.index}, {self.flags}, eax={self.eax:#x}, "
            f"ebx={self.ebx:#x}, ecx={self.ecx:#x}, edx={self.edx:#x})"
        )


def buffer(count: int) -> bytearray:
    """Return a struct kvm_cpuid2 with room for ``count`` entries."""
    made = bytearray(_HEADER.size + count * _ENTRY.size)
    _HEADER.pack_into(made, 0, count)
    return made


def decode(record: bytes | bytearray) -> list[CpuidEntry]:
    """Return the entries of a struct kvm_cpuid2."""
    (count,) = _HEADER.unpack_from(record)
    end = _HEADER.size + count * _ENTRY.size
    return [CpuidEntry(*v) for v in _ENTRY.iter_unpack(memoryview(record)[_HEADER.size : end])]


def encode(entries: Iterable[CpuidEntry]) -> bytearray:
    """Return the entries as a struct kvm_cpuid2."""
    packed = [_ENTRY.pack(*entry.values()) for entry in entries]
    return bytearray(_HEADER.pack(len(packed)) + b"".join(packed))


def find(entries: Iterable[CpuidEntry], function: int, index: int = 0) -> CpuidEntry | None:
    """Return the entry that answers a function; ``index`` counts where the entry has one."""
    for entry in entries:
        if entry.function == function and (not entry.flags & _BY_INDEX or entry.index == index):
            return entry
    return None


def put(entries: list[CpuidEntry], new: CpuidEntry) -> None:
    """Add an entry in place of the one that answered its function and index, if any."""
    for position, entry in enumerate(entries):
        if entry.function == new.function and (
            not (entry.flags | new.flags) & _BY_INDEX or entry.index == new.index
        ):
            entries[position] = new
            return
    entries.append(new)


def edit(  # a bit is named by four values, and given or taken by one
    entries: list[CpuidEntry],
    function: int,
    register: str,
    *,
    index: int = 0,
    give: int = 0,
    take: int = 0,
) -> None:
    """Set and clear bits of one register ("eax" to "edx"); a missing entry is made for ``give``."""
    entry = find(entries, function, index)
    if entry is None:
        if not give:
            return
        entry = CpuidEntry(function, index, _BY_INDEX if index else 0)
        entries.append(entry)
    setattr(entry, register, getattr(entry, register) & ~take | give)
