"""A virtual processor: running it, its run page, and all of its state."""

from __future__ import annotations

from mmap import MAP_SHARED, PROT_READ, PROT_WRITE, mmap
from struct import Struct

from kvmpv.errors import KvmError

from . import cpuid, stats, uapi
from ._call import big, call, get, put
from ._handle import Handle
from ._ioctl import kick as _kick
from ._ioctl import run as _run
from .state import Regs, Sregs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_IMMEDIATE_EXIT = uapi.RUN_IMMEDIATE_EXIT8
_MSR_ENTRY = Struct(uapi.FORMAT_MSR_ENTRY)
_MSRS = Struct(uapi.FORMAT_MSRS)
_TRANSLATION = Struct(uapi.FORMAT_TRANSLATION)
_GUEST_DEBUG = Struct(uapi.FORMAT_GUEST_DEBUG)
_ENABLE_CAP = Struct(uapi.FORMAT_ENABLE_CAP)
_SIGNAL_MASK = Struct(uapi.FORMAT_SIGNAL_MASK)
_INTERRUPT = Struct(uapi.FORMAT_INTERRUPT)
_MP_STATE = Struct(uapi.FORMAT_MP_STATE)


class Vcpu(Handle):
    """Own a virtual processor and its run page.

    ``page8``, ``page32`` and ``page64`` are the run page by bytes, 32- and 64-bit words; uapi's
    ``RUN_*`` index them. Only the thread that runs a vCPU may call it, kick() excepted.
    """

    __slots__ = ("_map", "_stats", "index", "page8", "page32", "page64", "xsave_size")

    def __init__(self, fd: int, index: int, run_page_size: int, xsave_size: int) -> None:
        super().__init__(fd)
        self.index = index
        self.xsave_size = xsave_size
        self._stats: stats.Stats | None = None
        try:
            self._map = mmap(fd, run_page_size, MAP_SHARED, PROT_READ | PROT_WRITE)
        except BaseException:
            super().close()
            raise
        self.page8 = memoryview(self._map)
        self.page32 = self.page8.cast("I")
        self.page64 = self.page8.cast("Q")

    def close(self) -> None:
        """Close the descriptors and unmap the run page; doing so again does nothing."""
        for view in (self.page64, self.page32, self.page8):
            view.release()
        self._map.close()
        if self._stats is not None:
            self._stats.close()
        super().close()

    # ---- running

    def run(self) -> int:
        """Enter the guest; return 0 when it has exited, or -errno (-EINTR: it was kicked)."""
        return _run(self.fd)

    def sync(self, what: int) -> None:
        """Have KVM keep register sets in the run page at every exit (``KVM_SYNC_X86_*``)."""
        self.page64[uapi.RUN_VALID_REGS64] = what

    def kick(self, thread: int, signo: int) -> int:
        """Bring the vCPU out of the guest, from any thread; return 0 or -errno.

        ``thread`` is the native id of the one that runs it, ``signo`` was given to kick_signal().
        run() then returns -EINTR at once, and goes on doing so until clear_kick().
        """
        self.page8[_IMMEDIATE_EXIT] = 1
        return _kick(thread, signo)

    def clear_kick(self) -> None:
        """Let run() enter the guest again."""
        self.page8[_IMMEDIATE_EXIT] = 0

    def complete_exit(self) -> int:
        """Finish the last exit (port, MMIO, MSR) without running the guest; return run()'s value.

        Only then are the registers those between two instructions: do it before saving state.
        """
        before = self.page8[_IMMEDIATE_EXIT]
        self.page8[_IMMEDIATE_EXIT] = 1
        try:
            return _run(self.fd)
        finally:
            self.page8[_IMMEDIATE_EXIT] = before

    def set_signal_mask(self, signals: Iterable[int] | None) -> None:
        """Block just these signals while in the guest; None leaves the thread's mask as it is."""
        name, request = "KVM_SET_SIGNAL_MASK", uapi.KVM_SET_SIGNAL_MASK
        if signals is None:
            call(name, self.fd, request)
            return
        bits = 0
        for signo in signals:
            bits |= 1 << (signo - 1)
        put(name, self.fd, request, _SIGNAL_MASK.pack(8, bits))

    # ---- registers

    def regs(self) -> Regs:
        """Read the general registers."""
        return Regs.unpack(get("KVM_GET_REGS", self.fd, uapi.KVM_GET_REGS, bytes(uapi.SIZE_REGS)))

    def set_regs(self, regs: Regs | None = None, **values: int) -> None:
        """Write the general registers: all of ``regs``, or the named ones only."""
        changed = self.regs() if regs is None else regs
        for name, value in values.items():
            setattr(changed, name, value)
        put("KVM_SET_REGS", self.fd, uapi.KVM_SET_REGS, changed.pack())

    def sregs(self) -> Sregs:
        """Read the segment, table and control registers."""
        blank = bytes(uapi.SIZE_SREGS)
        return Sregs.unpack(get("KVM_GET_SREGS", self.fd, uapi.KVM_GET_SREGS, blank))

    def set_sregs(self, sregs: Sregs) -> None:
        """Write the segment, table and control registers."""
        put("KVM_SET_SREGS", self.fd, uapi.KVM_SET_SREGS, sregs.pack())

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

    def set_cpuid(self, entries: Iterable[cpuid.CpuidEntry]) -> None:
        """Set what the guest's CPUID answers; before the vCPU first runs."""
        big("KVM_SET_CPUID2", self.fd, uapi.KVM_SET_CPUID2, cpuid.encode(entries))

    def stats(self) -> dict[str, int]:
        """Return the vCPU's statistics that are one number, by the kernel's names."""
        if self._stats is None:
            self._stats = self.open_stats()
        return self._stats.read()

    def open_stats(self) -> stats.Stats:
        """Open the vCPU's binary statistics; the caller closes them."""
        return stats.Stats(call("KVM_GET_STATS_FD", self.fd, uapi.KVM_GET_STATS_FD))


_EINVAL = 22


def _msr_table(entries: Iterable[tuple[int, int]]) -> bytearray:
    packed = [_MSR_ENTRY.pack(index, value) for index, value in entries]
    return bytearray(_MSRS.pack(len(packed)) + b"".join(packed))
