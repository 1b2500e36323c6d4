"""A virtual processor: running it, kicking it, its run page."""

from __future__ import annotations

from mmap import MAP_SHARED, PROT_READ, PROT_WRITE, mmap
from struct import Struct

from kvmpv.errors import BadInput, KvmError

from . import uapi
from ._call import call, get, put
from ._ioctl import ioctl as _ioctl
from ._ioctl import kick as _kick
from ._ioctl import run as _run
from .state import VcpuState
from .stats import Stats

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_EINVAL = 22
_IMMEDIATE_EXIT = uapi.RUN_IMMEDIATE_EXIT8
_TRANSLATION = Struct(uapi.FORMAT_TRANSLATION)
_GUEST_DEBUG = Struct(uapi.FORMAT_GUEST_DEBUG)
_ENABLE_CAP = Struct(uapi.FORMAT_ENABLE_CAP)
_SIGNAL_MASK = Struct(uapi.FORMAT_SIGNAL_MASK)
_SIGSET_BYTES = 8  # the kernel's sigset_t, not the C library's
_INTERRUPT = Struct(uapi.FORMAT_INTERRUPT)


class Vcpu(VcpuState):
    """Own a virtual processor and its run page.

    ``page8``, ``page32`` and ``page64`` are the run page by bytes, 32- and 64-bit words; uapi's
    ``RUN_*`` index them. Only the thread that runs a vCPU may call it, kick() excepted.
    """

    __slots__ = ("_map", "_stats", "index", "page8", "page32", "page64")

    def __init__(self, fd: int, index: int, run_page_size: int, xsave_size: int) -> None:
        super().__init__(fd)
        self.index = index
        self.xsave_size = xsave_size
        self._stats: Stats | None = None
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
        """Have KVM keep register sets in the run page at every exit (``KVM_SYNC_X86_*``).

        Registers written there count once their set's bit is in ``page64[RUN_DIRTY_REGS64]``.
        """
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
        -EINTR is success; 0 is another exit of the same instruction, to be served and completed.
        """
        before = self.page8[_IMMEDIATE_EXIT]
        self.page8[_IMMEDIATE_EXIT] = 1
        try:
            return _run(self.fd)
        finally:
            self.page8[_IMMEDIATE_EXIT] = before

    def set_signal_mask(self, blocked: Iterable[int] | None) -> None:
        """Block just these signals while in the guest; None leaves the thread's own mask."""
        name, request = "KVM_SET_SIGNAL_MASK", uapi.KVM_SET_SIGNAL_MASK
        if blocked is None:
            call(name, self.fd, request)
            return
        bits = 0
        for signo in blocked:
            bits |= 1 << (signo - 1)
        put(name, self.fd, request, _SIGNAL_MASK.pack(_SIGSET_BYTES, bits))

    # ---- interrupts

    def nmi(self) -> None:
        """Send a non-maskable interrupt."""
        call("KVM_NMI", self.fd, uapi.KVM_NMI)

    def interrupt(self, vector: int) -> None:
        """Queue an external interrupt; only for machines without in-kernel LAPICs."""
        put("KVM_INTERRUPT", self.fd, uapi.KVM_INTERRUPT, _INTERRUPT.pack(vector))

    # ---- the rest

    def enable_cap(self, cap: int, *args: int, flags: int = 0) -> None:
        """Switch a capability of this vCPU on, with up to four arguments."""
        a, b, c, d = (*args, 0, 0, 0, 0)[:4]
        record = _ENABLE_CAP.pack(cap, flags, a, b, c, d)
        put(f"KVM_ENABLE_CAP {cap}", self.fd, uapi.KVM_ENABLE_CAP, record)

    def kvmclock_ctrl(self) -> bool:
        """Tell the guest that it was paused, so that its watchdogs bear it; False: no kvmclock."""
        result = _ioctl(self.fd, uapi.KVM_KVMCLOCK_CTRL)
        if result < 0 and result != -_EINVAL:
            raise KvmError("KVM_KVMCLOCK_CTRL", -result)
        return result == 0

    def set_guest_debug(
        self,
        *,
        single_step: bool = False,
        breakpoints: Sequence[int] = (),
        software: bool = False,
        flags: int = 0,
    ) -> None:
        """Exit (KVM_EXIT_DEBUG) after each instruction, at up to four addresses, or at ``int3``.

        With none of them debugging is off. ``flags`` are further ``KVM_GUESTDBG_*``.
        """
        if len(breakpoints) > 4:
            raise BadInput(f"{len(breakpoints)} breakpoints: a processor has four")
        control = flags
        if single_step:
            control |= uapi.KVM_GUESTDBG_SINGLESTEP
        if software:
            control |= uapi.KVM_GUESTDBG_USE_SW_BP
        debugreg = [0] * 8
        for number, address in enumerate(breakpoints):
            control |= uapi.KVM_GUESTDBG_USE_HW_BP
            debugreg[number] = address
            debugreg[7] |= 2 << number * 2 | 1 << 10  # global, on execution (Intel SDM 3B, 17.2.4)
        if control:
            control |= uapi.KVM_GUESTDBG_ENABLE
        record = _GUEST_DEBUG.pack(control, *debugreg)
        put("KVM_SET_GUEST_DEBUG", self.fd, uapi.KVM_SET_GUEST_DEBUG, record)

    def translate(self, gva: int) -> int | None:
        """Return the guest-physical address of a guest-virtual one, or None if it has none."""
        record = get(
            "KVM_TRANSLATE", self.fd, uapi.KVM_TRANSLATE, _TRANSLATION.pack(gva, 0, 0, 0, 0)
        )
        _, gpa, valid, _, _ = _TRANSLATION.unpack(record)
        return gpa if valid else None

    def open_stats(self) -> Stats:
        """Open the vCPU's binary statistics; the caller closes them."""
        return Stats(call("KVM_GET_STATS_FD", self.fd, uapi.KVM_GET_STATS_FD))

    def stats(self) -> dict[str, int]:
        """Return the vCPU's statistics that are one number, by the kernel's names."""
        if self._stats is None:
            self._stats = self.open_stats()
        return self._stats.read()
