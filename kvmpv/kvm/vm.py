"""A virtual machine: memory slots, interrupt controllers, event descriptors, vCPUs."""

from __future__ import annotations

from struct import Struct

from kvmpv.errors import BadInput

from . import routing, uapi
from ._call import big, call, get, put
from ._handle import Handle
from ._ioctl import address as _address
from .stats import Stats
from .vcpu import Vcpu

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_REGION = Struct(uapi.FORMAT_USERSPACE_MEMORY_REGION)
_ENABLE_CAP = Struct(uapi.FORMAT_ENABLE_CAP)
_MSI = Struct(uapi.FORMAT_MSI)
_IRQFD = Struct(uapi.FORMAT_IRQFD)
_IOEVENTFD = Struct(uapi.FORMAT_IOEVENTFD)
_LEVEL = Struct(uapi.FORMAT_IRQ_LEVEL)
_PIT = Struct(uapi.FORMAT_PIT_CONFIG)
_CLOCK = Struct(uapi.FORMAT_CLOCK_DATA)
_DIRTY = Struct(uapi.FORMAT_DIRTY_LOG)
_CLEAR = Struct(uapi.FORMAT_CLEAR_DIRTY_LOG)
_FILTER_RANGE = Struct(uapi.FORMAT_MSR_FILTER_RANGE)
_ADDRESS = Struct("<Q")
_CHIP = Struct("<I4x")  # the head of struct kvm_irqchip
_LOW = 0xFFFF_FFFF
_PAGE = 4096
_READ_WRITE = uapi.KVM_MSR_FILTER_READ | uapi.KVM_MSR_FILTER_WRITE


class Clock:
    """Hold the guest's clock in nanoseconds, and the host's at that moment where flags say so."""

    __slots__ = ("clock", "flags", "host_tsc", "realtime")

    def __init__(self, clock: int, flags: int = 0, realtime: int = 0, host_tsc: int = 0) -> None:
        self.clock = clock
        self.flags = flags
        self.realtime = realtime
        self.host_tsc = host_tsc


class MsrRange:
    """Allow or deny ``count`` MSRs from ``base`` on: bit n of ``allowed`` set allows base + n.

    ``flags`` say which accesses that is about: KVM_MSR_FILTER_READ, KVM_MSR_FILTER_WRITE or both.
    """

    __slots__ = ("allowed", "base", "count", "flags")

    def __init__(
        self, base: int, count: int, allowed: bytes = b"", flags: int = _READ_WRITE
    ) -> None:
        if not 0 < count <= uapi.KVM_MSR_FILTER_MAX_BITMAP_SIZE * 8:
            raise BadInput(f"an MSR range of {count}: KVM takes 1 to 12288")
        self.base = base
        self.count = count
        self.allowed = allowed
        self.flags = flags

    def bitmap(self) -> bytearray:
        """Return the bits as the kernel reads them: in whole words of 64."""
        size = (self.count + 63) // 64 * 8
        return bytearray(self.allowed[:size].ljust(size, b"\0"))


class Vm(Handle):
    """Own a virtual machine, which lives until its last descriptor and vCPU are closed.

    The process that made it must be the one that uses it: KVM refuses all others.
    """

    __slots__ = ("_pages", "_run_page_size", "_stats", "_xsave_size")

    def __init__(self, fd: int, run_page_size: int) -> None:
        super().__init__(fd)
        self._run_page_size = run_page_size
        self._stats: Stats | None = None
        self._xsave_size = 0
        self._pages: dict[int, int] = {}  # of each memory slot

    def close(self) -> None:
        """Close the descriptors; doing so again does nothing."""
        if self._stats is not None:
            self._stats.close()
        super().close()

    # ---- capabilities

    def check_extension(self, cap: int) -> int:
        """Return what a capability (``KVM_CAP_*``) is worth for this machine: 0 is no."""
        return call("KVM_CHECK_EXTENSION", self.fd, uapi.KVM_CHECK_EXTENSION, cap)

    def enable_cap(self, cap: int, *args: int, flags: int = 0) -> None:
        """Switch a capability on, with up to four arguments."""
        record = _ENABLE_CAP.pack(cap, flags, *(*args, 0, 0, 0, 0)[:4])
        put(f"KVM_ENABLE_CAP {cap}", self.fd, uapi.KVM_ENABLE_CAP, record)

    # ---- memory

    def set_memory_slot(
        self, slot: int, gpa: int, size: int, host_address: int, flags: int = 0
    ) -> None:
        """Show ``size`` bytes at ``host_address`` to the guest at ``gpa``; size 0 deletes the slot.

        The caller keeps the memory mapped for as long as the slot is there.
        """
        record = bytearray(_REGION.pack(slot, flags, gpa, size, host_address))
        what = f"memory slot {slot} at {gpa:#x}, {size:#x} bytes"
        big(what, self.fd, uapi.KVM_SET_USER_MEMORY_REGION, record)
        self._pages[slot] = size // _PAGE

    def set_tss_address(self, gpa: int) -> None:
        """Give Intel processors three pages of guest addresses for real mode."""
        big("KVM_SET_TSS_ADDR", self.fd, uapi.KVM_SET_TSS_ADDR, gpa)

    def set_identity_map_address(self, gpa: int) -> None:
        """Give Intel processors one page of guest addresses for real mode."""
        name = "KVM_SET_IDENTITY_MAP_ADDR"
        put(name, self.fd, uapi.KVM_SET_IDENTITY_MAP_ADDR, _ADDRESS.pack(gpa))

    def dirty_log(self, slot: int, pages: int) -> bytes:
        """Return one bit for each page of a slot that was written to since it was last clean.

        Reading cleans, unless KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 is on: then clear_dirty_log() does.
        """
        bitmap = bytearray((self._checked(slot, pages) + 63) // 64 * 8)
        record = bytearray(_DIRTY.pack(slot, _address(bitmap)))
        big("KVM_GET_DIRTY_LOG", self.fd, uapi.KVM_GET_DIRTY_LOG, record)
        return bytes(bitmap)

    def clear_dirty_log(self, slot: int, first_page: int, pages: int, bitmap: bytes) -> None:
        """Clean the pages whose bits are set; bit 0 is ``first_page``, a multiple of 64.

        ``pages`` is a multiple of 64 as well, unless it reaches to the slot's end.
        """
        size = (pages + 63) // 64 * 8
        kept = bytearray(bitmap[:size].ljust(size, b"\0"))
        record = bytearray(_CLEAR.pack(slot, pages, first_page, _address(kept)))
        big("KVM_CLEAR_DIRTY_LOG", self.fd, uapi.KVM_CLEAR_DIRTY_LOG, record)

    def _checked(self, slot: int, pages: int) -> int:
        # The kernel writes as many bits as the slot has pages, whatever the buffer has room for.
        if pages != self._pages.get(slot):
            raise BadInput(f"slot {slot} has {self._pages.get(slot, 0)} pages, not {pages}")
        return pages

    # ---- interrupt controllers

    def create_irqchip(self) -> None:
        """Put PIC, IOAPIC and the vCPUs' LAPICs into the kernel; before the first vCPU."""
        call("KVM_CREATE_IRQCHIP", self.fd, uapi.KVM_CREATE_IRQCHIP)

    def split_irqchip(self, pins: int = 0) -> None:
        """Put only the vCPUs' LAPICs into the kernel, with so many IOAPIC routes reserved."""
        self.enable_cap(uapi.KVM_CAP_SPLIT_IRQCHIP, pins)

    def create_pit(self, flags: int = 0) -> None:
        """Put an i8254 timer into the kernel; needs create_irqchip()."""
        put("KVM_CREATE_PIT2", self.fd, uapi.KVM_CREATE_PIT2, _PIT.pack(flags))

    def irq_line(self, gsi: int, level: int) -> None:
        """Raise or lower an input of the interrupt controllers."""
        put("KVM_IRQ_LINE", self.fd, uapi.KVM_IRQ_LINE, _LEVEL.pack(gsi, level))

    def irqchip(self, chip: int) -> bytes:
        """Read the registers of the PICs or the IOAPIC (``KVM_IRQCHIP_*``)."""
        record = _CHIP.pack(chip).ljust(uapi.SIZE_IRQCHIP, b"\0")
        return get("KVM_GET_IRQCHIP", self.fd, uapi.KVM_GET_IRQCHIP, record)[_CHIP.size :]

    def set_irqchip(self, chip: int, registers: bytes) -> None:
        """Write the registers of the PICs or the IOAPIC."""
        record = (_CHIP.pack(chip) + registers).ljust(uapi.SIZE_IRQCHIP, b"\0")
        put("KVM_SET_IRQCHIP", self.fd, uapi.KVM_SET_IRQCHIP, record)

    def pit(self) -> bytes:
        """Read the timer's three channels and flags."""
        blank = bytes(uapi.SIZE_PIT_STATE2)
        return get("KVM_GET_PIT2", self.fd, uapi.KVM_GET_PIT2, blank)

    def set_pit(self, state: bytes) -> None:
        """Write the timer's three channels and flags."""
        put("KVM_SET_PIT2", self.fd, uapi.KVM_SET_PIT2, state.ljust(uapi.SIZE_PIT_STATE2, b"\0"))

    def set_routing(self, routes: Iterable[routing.MsiRoute | routing.IrqchipRoute]) -> None:
        """Replace the whole table of GSI routes: slow (docs/kvm.md), so in batches."""
        big("KVM_SET_GSI_ROUTING", self.fd, uapi.KVM_SET_GSI_ROUTING, routing.encode(routes))

    def signal_msi(self, address: int, data: int) -> int:
        """Send a message to a LAPIC; above 0 it was delivered, 0 the guest blocked it."""
        record = bytearray(_MSI.pack(address & _LOW, address >> 32, data, 0, 0))
        return big("KVM_SIGNAL_MSI", self.fd, uapi.KVM_SIGNAL_MSI, record)

    # ---- event descriptors

    def irqfd(self, eventfd: int, gsi: int, deassign: bool = False, resample: int = -1) -> None:
        """Make a write to an eventfd an interrupt of the GSI; ``resample`` is told of its EOI."""
        flags = uapi.KVM_IRQFD_FLAG_DEASSIGN if deassign else 0
        if resample >= 0:
            flags |= uapi.KVM_IRQFD_FLAG_RESAMPLE
        record = bytearray(_IRQFD.pack(eventfd, gsi, flags, resample))
        big(f"irqfd of GSI {gsi}", self.fd, uapi.KVM_IRQFD, record)

    def ioeventfd(
        self,
        eventfd: int,
        address: int,
        size: int,
        datamatch: int | None = None,
        pio: bool = False,
        deassign: bool = False,
    ) -> None:
        """Make the guest's write of ``size`` bytes to an address, or port, a write to an eventfd.

        The guest goes on without an exit. Size 0 takes any; ``datamatch`` only that value.
        """
        flags = uapi.KVM_IOEVENTFD_FLAG_PIO if pio else 0
        if deassign:
            flags |= uapi.KVM_IOEVENTFD_FLAG_DEASSIGN
        if datamatch is not None:
            flags |= uapi.KVM_IOEVENTFD_FLAG_DATAMATCH
        record = bytearray(_IOEVENTFD.pack(datamatch or 0, address, size, eventfd, flags))
        big(f"ioeventfd at {address:#x}", self.fd, uapi.KVM_IOEVENTFD, record)

    # ---- MSRs

    def set_msr_filter(self, ranges: Sequence[MsrRange] = (), *, deny: bool = False) -> None:
        """Say which MSRs the guest may use; what no range names is allowed, or denied.

        What is denied faults in the guest, or exits where KVM_CAP_X86_USER_SPACE_MSR asks so.
        """
        if len(ranges) > uapi.KVM_MSR_FILTER_MAX_RANGES:
            raise BadInput(f"{len(ranges)} MSR ranges: KVM takes {uapi.KVM_MSR_FILTER_MAX_RANGES}")
        table = bytearray(uapi.SIZE_MSR_FILTER)
        table[0] = uapi.KVM_MSR_FILTER_DEFAULT_DENY if deny else uapi.KVM_MSR_FILTER_DEFAULT_ALLOW
        bitmaps = [chosen.bitmap() for chosen in ranges]  # kept alive over the call
        for position, (chosen, bits) in enumerate(zip(ranges, bitmaps, strict=True)):
            at = 8 + position * _FILTER_RANGE.size
            fields = (chosen.flags, chosen.count, chosen.base, _address(bits))
            _FILTER_RANGE.pack_into(table, at, *fields)
        big("KVM_X86_SET_MSR_FILTER", self.fd, uapi.KVM_X86_SET_MSR_FILTER, table)

    # ---- clock

    def get_clock(self) -> Clock:
        """Read the guest's clock."""
        blank = bytes(uapi.SIZE_CLOCK_DATA)
        record = get("KVM_GET_CLOCK", self.fd, uapi.KVM_GET_CLOCK, blank)
        clock, flags, realtime, host_tsc = _CLOCK.unpack(record)
        return Clock(clock, flags, realtime, host_tsc)

    def set_clock(self, clock: Clock) -> None:
        """Set the guest's clock; with KVM_CLOCK_REALTIME in its flags it is moved on to now."""
        flags = clock.flags & uapi.KVM_CLOCK_REALTIME  # the only one that the kernel takes
        record = _CLOCK.pack(clock.clock, flags, clock.realtime, 0)
        put("KVM_SET_CLOCK", self.fd, uapi.KVM_SET_CLOCK, record)

    # ---- vCPUs and statistics

    def create_vcpu(self, index: int) -> Vcpu:
        """Make a vCPU whose number is also its APIC id; interrupt controllers come before."""
        if not self._xsave_size:
            cap = self.check_extension(uapi.KVM_CAP_XSAVE2)
            self._xsave_size = max(cap, uapi.SIZE_XSAVE)
        fd = big(f"vCPU {index}", self.fd, uapi.KVM_CREATE_VCPU, index)
        return Vcpu(fd, index, self._run_page_size, self._xsave_size)

    def open_stats(self) -> Stats:
        """Open the machine's binary statistics; the caller closes them."""
        return Stats(call("KVM_GET_STATS_FD", self.fd, uapi.KVM_GET_STATS_FD))

    def stats(self) -> dict[str, int]:
        """Return the machine's statistics that are one number, by the kernel's names."""
        if self._stats is None:
            self._stats = self.open_stats()
        return self._stats.read()
