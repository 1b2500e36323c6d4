"""Everything that a vCPU's state is made of, read and written by ioctl."""

from __future__ import annotations

from struct import Struct

from kvmpv.errors import BadInput, KvmError

from . import cpuid as _cpuid
from . import uapi
from ._call import big, call, get, put
from ._handle import Handle
from .records import DebugRegs, Events, Fpu, Regs, Sregs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any, Final

    from .cpuid import CpuidEntry

STATE_VERSION: Final = 1

_MSR_ENTRY = Struct(uapi.FORMAT_MSR_ENTRY)
_MSRS = Struct(uapi.FORMAT_MSRS)
_XCRS = Struct(uapi.FORMAT_XCRS)
_XCR = Struct(uapi.FORMAT_XCR)
_MP_STATE = Struct(uapi.FORMAT_MP_STATE)
_CPUID_ENTRIES = 256  # the kernel's own limit (KVM_MAX_CPUID_ENTRIES)
_EINVAL, _ENOTTY = 22, 25


class VcpuState(Handle):
    """Read and write a vCPU's state; only the thread that runs the vCPU may do so."""

    __slots__ = ("xsave_size",)

    xsave_size: int

    # ---- registers

    def regs(self) -> Regs:
        """Read the general registers."""
        return Regs.unpack(self._get("KVM_GET_REGS", uapi.KVM_GET_REGS, uapi.SIZE_REGS))

    def set_regs(self, regs: Regs | None = None, **values: int) -> None:
        """Write the general registers: all of ``regs``, or the named ones and leave the others."""
        changed = self.regs() if regs is None else regs
        for name, value in values.items():
            setattr(changed, name, value)
        put("KVM_SET_REGS", self.fd, uapi.KVM_SET_REGS, changed.pack())

    def sregs(self) -> Sregs:
        """Read the segment, table and control registers."""
        return Sregs.unpack(self._get("KVM_GET_SREGS", uapi.KVM_GET_SREGS, uapi.SIZE_SREGS))

    def set_sregs(self, sregs: Sregs) -> None:
        """Write the segment, table and control registers."""
        put("KVM_SET_SREGS", self.fd, uapi.KVM_SET_SREGS, sregs.pack())

    def fpu(self) -> Fpu:
        """Read the x87 and SSE registers."""
        return Fpu.unpack(self._get("KVM_GET_FPU", uapi.KVM_GET_FPU, uapi.SIZE_FPU))

    def set_fpu(self, fpu: Fpu) -> None:
        """Write the x87 and SSE registers.

        A host with XSAVE gives them to the guest only where xsave()'s header, at byte 512, has
        them in use: set_xsave() is the sure way.
        """
        put("KVM_SET_FPU", self.fd, uapi.KVM_SET_FPU, fpu.pack())

    def xsave(self) -> bytes:
        """Read all extended state as XSAVE lays it out, ``xsave_size`` bytes."""
        area = bytearray(self.xsave_size)
        # The older call fills one page at most, and is all that kernels before 5.17 know.
        larger = self.xsave_size > uapi.SIZE_XSAVE
        request = uapi.KVM_GET_XSAVE2 if larger else uapi.KVM_GET_XSAVE
        big("KVM_GET_XSAVE", self.fd, request, area)
        return bytes(area)

    def set_xsave(self, area: bytes) -> None:
        """Write all extended state; ``area`` is as long as xsave() returns."""
        if len(area) != self.xsave_size:
            raise BadInput(f"XSAVE state of {len(area)} bytes, not {self.xsave_size}")
        big("KVM_SET_XSAVE", self.fd, uapi.KVM_SET_XSAVE, bytearray(area))

    def xcrs(self) -> dict[int, int]:
        """Read the extended control registers: XCR0 is the one there is today."""
        record = self._get("KVM_GET_XCRS", uapi.KVM_GET_XCRS, uapi.SIZE_XCRS)
        count, _ = _XCRS.unpack_from(record)
        places = range(_XCRS.size, _XCRS.size + count * _XCR.size, _XCR.size)
        return dict(_XCR.unpack_from(record, at) for at in places)

    def set_xcrs(self, values: Mapping[int, int]) -> None:
        """Write the extended control registers."""
        packed = b"".join([_XCR.pack(xcr, value) for xcr, value in values.items()])
        record = (_XCRS.pack(len(values), 0) + packed).ljust(uapi.SIZE_XCRS, b"\0")
        put("KVM_SET_XCRS", self.fd, uapi.KVM_SET_XCRS, record)

    def msrs(self, indices: Iterable[int], *, missing_ok: bool = False) -> dict[int, int]:
        """Read MSRs; one that cannot be read raises KvmError, or is left out if ``missing_ok``."""
        wanted = list(indices)
        values: dict[int, int] = {}
        while wanted:
            table = _msr_table((index, 0) for index in wanted)
            done = big("KVM_GET_MSRS", self.fd, uapi.KVM_GET_MSRS, table)
            for at in range(_MSRS.size, _MSRS.size + done * _MSR_ENTRY.size, _MSR_ENTRY.size):
                index, value = _MSR_ENTRY.unpack_from(table, at)
                values[index] = value
            if done < len(wanted) and not missing_ok:
                raise KvmError(f"reading MSR {wanted[done]:#x}", _EINVAL)
            wanted = wanted[done + 1 :]
        return values

    def set_msrs(self, values: Mapping[int, int]) -> None:
        """Write MSRs in the order given; raises KvmError at the first that is refused."""
        entries = list(values.items())
        done = big("KVM_SET_MSRS", self.fd, uapi.KVM_SET_MSRS, _msr_table(entries))
        if done < len(entries):
            index, value = entries[done]
            raise KvmError(f"writing {value:#x} to MSR {index:#x}", _EINVAL)

    # ---- what the processor answers

    def cpuid(self) -> list[CpuidEntry]:
        """Read the table that the guest's CPUID answers from."""
        table = _cpuid.buffer(_CPUID_ENTRIES)
        big("KVM_GET_CPUID2", self.fd, uapi.KVM_GET_CPUID2, table)
        # Linux 6.1 does not say how many it has filled: what is left over is all zero.
        return [entry for entry in _cpuid.decode(table) if any(entry.values())]

    def set_cpuid(self, entries: Iterable[CpuidEntry]) -> None:
        """Set what the guest's CPUID answers; before the vCPU first runs."""
        big("KVM_SET_CPUID2", self.fd, uapi.KVM_SET_CPUID2, _cpuid.encode(entries))

    def tsc_khz(self) -> int:
        """Return the frequency of the guest's time stamp counter, in kHz."""
        return call("KVM_GET_TSC_KHZ", self.fd, uapi.KVM_GET_TSC_KHZ)

    def set_tsc_khz(self, khz: int) -> None:
        """Set the frequency of the guest's time stamp counter, where the host can scale it."""
        call("KVM_SET_TSC_KHZ", self.fd, uapi.KVM_SET_TSC_KHZ, khz)

    # ---- interrupts and run state

    def lapic(self) -> bytes:
        """Read the in-kernel LAPIC's 1024 bytes of registers (offsets: Intel SDM 3A, 11.4.1)."""
        return self._get("KVM_GET_LAPIC", uapi.KVM_GET_LAPIC, uapi.SIZE_LAPIC)

    def set_lapic(self, registers: bytes) -> None:
        """Write the in-kernel LAPIC's registers."""
        if len(registers) != uapi.SIZE_LAPIC:
            raise BadInput(f"LAPIC state of {len(registers)} bytes, not {uapi.SIZE_LAPIC}")
        put("KVM_SET_LAPIC", self.fd, uapi.KVM_SET_LAPIC, registers)

    def mp_state(self) -> int:
        """Return whether the vCPU runs, halts or waits for its start (``KVM_MP_STATE_*``)."""
        record = self._get("KVM_GET_MP_STATE", uapi.KVM_GET_MP_STATE, uapi.SIZE_MP_STATE)
        return int(_MP_STATE.unpack(record)[0])

    def set_mp_state(self, state: int) -> None:
        """Make the vCPU run, halt or wait for its start (``KVM_MP_STATE_*``)."""
        put("KVM_SET_MP_STATE", self.fd, uapi.KVM_SET_MP_STATE, _MP_STATE.pack(state))

    def events(self) -> Events:
        """Read what is pending: exceptions, interrupts, NMIs, SMIs."""
        name, size = "KVM_GET_VCPU_EVENTS", uapi.SIZE_VCPU_EVENTS
        return Events.unpack(self._get(name, uapi.KVM_GET_VCPU_EVENTS, size))

    def set_events(self, events: Events) -> None:
        """Write what is pending."""
        put("KVM_SET_VCPU_EVENTS", self.fd, uapi.KVM_SET_VCPU_EVENTS, events.pack())

    def debugregs(self) -> DebugRegs:
        """Read the guest's own debug registers."""
        name, size = "KVM_GET_DEBUGREGS", uapi.SIZE_DEBUGREGS
        return DebugRegs.unpack(self._get(name, uapi.KVM_GET_DEBUGREGS, size))

    def set_debugregs(self, debugregs: DebugRegs) -> None:
        """Write the guest's own debug registers."""
        put("KVM_SET_DEBUGREGS", self.fd, uapi.KVM_SET_DEBUGREGS, debugregs.pack())

    # ---- all at once

    def state(self, msr_indices: Iterable[int]) -> dict[str, Any]:
        """Return all state for restore(), with the MSRs that System.msr_indices() names.

        Complete a pending exit first (complete_exit()), or the state is that of an instruction
        half done.
        """
        # mp_state first: reading it settles a pending INIT or SIPI, which changes all others.
        saved: dict[str, Any] = {"version": STATE_VERSION, "mp_state": self.mp_state()}
        saved["cpuid"] = [entry.values() for entry in self.cpuid()]
        saved["tsc_khz"] = self.tsc_khz()
        saved["regs"] = self.regs().pack()
        saved["sregs"] = self.sregs().pack()
        saved["debugregs"] = self.debugregs().pack()
        saved["xcrs"] = self.xcrs()
        saved["xsave"] = self.xsave()
        saved["lapic"] = self._lapic_or_none()
        saved["msrs"] = self.msrs(msr_indices, missing_ok=True)
        saved["events"] = self.events().pack()
        return saved

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take on what state() returned; the vCPU has not run yet.

        The TSC's frequency is not set: compare ``saved["tsc_khz"]`` with the host's first.
        """
        if saved["version"] != STATE_VERSION:
            raise BadInput(f"vCPU state of version {saved['version']}, not {STATE_VERSION}")
        self.set_cpuid([_cpuid.CpuidEntry(*values) for values in saved["cpuid"]])
        self.set_mp_state(saved["mp_state"])
        self.set_regs(Regs.unpack(saved["regs"]))
        self.set_sregs(Sregs.unpack(saved["sregs"]))  # enables the LAPIC: before its registers
        self.set_debugregs(DebugRegs.unpack(saved["debugregs"]))
        self.set_xcrs(saved["xcrs"])
        self.set_xsave(saved["xsave"])
        if saved["lapic"] is not None:
            self.set_lapic(saved["lapic"])
        # The TSC deadline is taken only by a LAPIC whose timer is in that mode: after it.
        self._restore_msrs(saved["msrs"])
        self.set_events(Events.unpack(saved["events"]))  # KVM_SET_REGS drops exceptions: last

    def _restore_msrs(self, values: Mapping[int, int]) -> None:
        left = list(values.items())
        while left:
            done = big("KVM_SET_MSRS", self.fd, uapi.KVM_SET_MSRS, _msr_table(left))
            if done < len(left):
                # Some that can be read refuse every write: no harm where the value is the same.
                index, value = left[done]
                if self.msrs([index])[index] != value:
                    raise KvmError(f"restoring MSR {index:#x} to {value:#x}", _EINVAL)
            left = left[done + 1 :]

    def _lapic_or_none(self) -> bytes | None:
        try:
            return self.lapic()
        except KvmError as error:
            if error.errno not in (_EINVAL, _ENOTTY):  # a VM without in-kernel LAPICs
                raise
            return None

    def _get(self, what: str, request: int, size: int) -> bytes:
        return get(what, self.fd, request, bytes(size))


def _msr_table(entries: Iterable[tuple[int, int]]) -> bytearray:
    packed = [_MSR_ENTRY.pack(index, value) for index, value in entries]
    return bytearray(_MSRS.pack(len(packed)) + b"".join(packed))
