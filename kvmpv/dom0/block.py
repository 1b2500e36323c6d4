"""virtio-blk: one disk of a guest, its policy; the data goes through kvmpv/dataplane/block.pyx.

Options: ``path`` or ``null`` (a size in bytes), ``readonly``, ``serial``, ``cache`` (none,
writeback, unsafe), ``snapshot`` with ``overlayfd``, ``logical`` and ``physical`` (block sizes),
``queues``, ``discard`` (on, off), ``iops``, ``iops_burst``, ``bps``, ``bps_burst``, ``group``,
``force``, ``poll`` (microseconds). docs/disks.md says what they mean.
"""

from __future__ import annotations

import os
import time

from kvmpv.dataplane import block
from kvmpv.dom0.disk import CACHES, SECTOR, Image, Overlay
from kvmpv.dom0.slot import ServedDevice
from kvmpv.errors import BadInput, HostError, VhostUserError
from kvmpv.vhostuser import message
from kvmpv.virtio import spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from kvmpv.dom0.slot import Slot
    from kvmpv.vhostuser.device import Vring
    from kvmpv.vhostuser.shared import MemoryRegion

QUEUES_MAX: Final = 16
SEGMENTS: Final = 126  # of one request: with header and status a queue of 128
ZEROES_MAX: Final = 1 << 21  # sectors, as in block.h
FENCE_RETRY_NS: Final = 20_000_000
FENCE_PATIENCE_NS: Final = 120_000_000_000
SECOND_NS: Final = 1_000_000_000
POLL_US: Final = 64  # the longest that a queue looks for requests before it sleeps
BURST_SHARE: Final = 10  # of a second's worth, unless said otherwise

FEATURES: Final = spec.mask(
    *(spec.F_VERSION_1, spec.F_INDIRECT_DESC, spec.F_EVENT_IDX),
    *(spec.BLK_F_SEG_MAX, spec.BLK_F_BLK_SIZE, spec.BLK_F_TOPOLOGY),
    *(spec.BLK_F_FLUSH, spec.BLK_F_CONFIG_WCE, spec.BLK_F_MQ),
)
DISCARDS: Final = spec.mask(spec.BLK_F_DISCARD, spec.BLK_F_WRITE_ZEROES)

# The token buckets that disks of this worker share, by the name of their group.
_groups: dict[str, block.Limits] = {}


class BlockDevice(ServedDevice):
    """A disk. Its queues start once the fence lets them: ``slot`` tells when it does not."""

    def __init__(self, options: dict[str, str]) -> None:
        self._options = options
        self._image: Image | None = None
        self._overlay: Overlay | None = None
        self._sectors = 0
        self._features = 0
        self._waiting: dict[int, Vring] = {}
        self._waits_since = 0
        self._told_faults: set[int] = set()
        self._events = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    # ---- what it is

    def _open(self) -> None:
        options = self._options
        self.queue_count = _number(options, "queues", 1, most=QUEUES_MAX) or 1
        self._read_only = options.get("readonly", "0") not in ("", "0")
        self._cache = options.get("cache", "writeback")
        if self._cache not in CACHES:
            raise BadInput(f"cache={self._cache!r} is none", hint=", ".join(CACHES))
        if "null" in options:
            self._sectors = _number(options, "null", 0) // SECTOR
        else:
            self._open_image()
        self._topology()
        self.features = FEATURES
        self.features |= spec.bit(spec.BLK_F_RO) if self._read_only else 0
        self._discard = not self._read_only and options.get("discard", "on") != "off"
        self.features |= DISCARDS if self._discard else 0
        self.protocol_features = message.PF_CONFIG | message.PF_INFLIGHT_SHMFD
        self._write_back = True
        self._disk = self._make_disk()
        self._limits = _limits(options)
        self._disk.set_limits(self._limits)

    def _open_image(self) -> None:
        options = self._options
        if "path" not in options:
            raise BadInput("a disk needs an image", hint="path=FILE or null=SIZE")
        snapshot = options.get("snapshot", "0") not in ("", "0")
        self._image = Image(
            options["path"],
            read_only=self._read_only or snapshot,
            direct=self._cache == "none",
            force=options.get("force", "0") not in ("", "0"),
        )
        self._sectors = self._image.size() // SECTOR
        if snapshot and not self._read_only:
            self._overlay = Overlay(_number(options, "overlayfd", -1), self._sectors * SECTOR)
        self._take_lock()  # so that whoever uses it is named at once

    def _topology(self) -> None:
        image = self._image
        logical = image.logical if image else SECTOR
        physical = image.physical if image else SECTOR
        self._logical = _number(self._options, "logical", 0) or logical
        self._physical = max(_number(self._options, "physical", 0) or physical, self._logical)
        for name, value in (("logical", self._logical), ("physical", self._physical)):
            if value & (value - 1) or value < SECTOR:
                raise BadInput(f"{name}={value} is no block size", hint="512, 1024, ... 4096")
        if self._logical < logical:
            hint = "take cache=writeback, or a larger logical"
            raise BadInput(f"below blocks of {logical} nothing can be written there", hint=hint)
        if self._sectors * SECTOR % self._logical:
            raise BadInput(f"the image is no number of blocks of {self._logical}")

    def _make_disk(self) -> block.Disk:
        image, overlay = self._image, self._overlay
        serial = os.fsencode(self._options.get("serial", ""))
        poll_ns = 1000 * _number(self._options, "poll", POLL_US, most=1000)
        if not image:
            return block.Disk(-1, self._sectors, self._events, serial, poll_max_ns=poll_ns)
        return block.Disk(
            image.fd,
            self._sectors,
            self._events,
            serial,
            read_only=self._read_only,
            unsafe=self._cache == "unsafe",
            discard=self._discard,
            memory_align=image.memory_align,
            offset_align=image.offset_align,
            overlay=overlay.fd if overlay else -1,
            bitmap=overlay.bitmap if overlay else None,
            poll_max_ns=poll_ns,
        )

    def config(self) -> bytes:
        physical_exponent = (self._physical // self._logical).bit_length() - 1
        optimal = self._image.optimal // self._logical if self._image else 0
        return spec.BLK_CONFIG.pack(
            *(self._sectors, 0, SEGMENTS),
            *(0, 0, 0),
            *(self._logical, physical_exponent, 0, 1, optimal),
            *(self._write_back, 0, self.queue_count),
            *(ZEROES_MAX, 1, max(self._physical // SECTOR, 1)),
            *(ZEROES_MAX, 1, 1),
        )

    def set_config(self, offset: int, data: bytes) -> None:
        if offset != spec.BLK_CONFIG_WCE_OFFSET or len(data) != 1 or data[0] > 1:
            raise VhostUserError(f"{len(data)} bytes of config at {offset:#x} are read-only")
        self._write_back = bool(data[0])
        self._set_write_through()

    def set_features(self, features: int) -> None:
        self._features = features
        self._set_write_through()

    def _set_write_through(self) -> None:
        """Without flushes a driver relies on each write (5.2.6.2)."""
        flushes = self._features & spec.mask(spec.BLK_F_FLUSH, spec.BLK_F_CONFIG_WCE)
        through = not self._write_back or not flushes
        self._disk.set_write_through(through and self._cache != "unsafe" and not self._overlay)

    # ---- the fence

    def attach(self, slot: Slot) -> None:
        super().attach(slot)
        slot.watch(self._events, self._look)

    def _take_lock(self) -> bool:
        image, overlay = self._image, self._overlay
        if image is None:
            return True
        return image.lock() and (overlay is None or overlay.lock())

    def _try_lock(self) -> None:
        if not self._take_lock():
            self._wait_for_lock()
            return
        if self._waits_since:
            waited = (time.monotonic_ns() - self._waits_since) // 1_000_000
            self.slot.log(f"the last requests of its predecessor ended after {waited} ms")
            self._waits_since = 0
        if self._image is not None:
            self._disk.set_image(self._image.fd)  # a block device's is another one now
        for index, vring in sorted(self._waiting.items()):
            self._start(index, vring)
        self._waiting.clear()

    def _wait_for_lock(self) -> None:
        now = time.monotonic_ns()
        if not self._waits_since:
            self._waits_since = now
            self.slot.log("waits for the last requests of its predecessor")
        if now - self._waits_since > FENCE_PATIENCE_NS:
            raise HostError("the last requests of its predecessor do not end", hint="see dmesg")
        self.slot.call_at(now + FENCE_RETRY_NS, self._try_lock)

    # ---- queues

    def set_memory(self, regions: list[MemoryRegion]) -> None:
        self._disk.set_memory([(region.gpa, region.size, region.address) for region in regions])

    def start_queue(self, index: int, vring: Vring) -> None:
        self._waiting[index] = vring
        self._try_lock()

    def _start(self, index: int, vring: Vring) -> None:
        self._disk.start(
            index,
            vring.num,
            vring.desc,
            vring.avail,
            vring.used,
            self._features,
            vring.base,
            vring.inflight,
            vring.kick,
            vring.call,
            vring.err,
            vring.enabled,
        )

    def stop_queue(self, index: int) -> int:
        # What a predecessor has in flight may still come to lie in the guest's memory.
        while index in self._waiting:
            time.sleep(FENCE_RETRY_NS / SECOND_NS)
            self._try_lock()
        self._told_faults.discard(index)
        return self._disk.stop(index) if self._disk.running(index) else 0

    def set_enabled(self, index: int, enabled: bool) -> None:
        self._disk.enable(index, enabled)

    def _look(self) -> None:
        """Say once what the queues' threads have met."""
        os.eventfd_read(self._events)
        error = self._disk.error()
        if error:
            number, what, sector = error
            text = f"{what} at sector {sector}: {os.strerror(number)}"
            self.slot.log(f"{text}; more of that kind is counted only")
        for index, fault in self._disk.faults().items():
            if index not in self._told_faults:
                self._told_faults.add(index)
                self.slot.log(f"queue {index} is broken by its driver: {fault}")

    # ---- what is told to it

    def stats(self) -> dict[str, int]:
        return self._disk.counters()

    def resize(self) -> bool:
        if self._image is None or self._overlay is not None:
            return False
        sectors = self._image.size() // SECTOR
        if sectors == self._sectors:
            return False
        self._sectors = sectors
        self._disk.set_capacity(sectors)
        return True

    def limit(self, limits: dict[str, str]) -> None:
        _set_limits(self._limits, {**self._options, **limits})
        self._options.update(limits)

    def reset(self) -> None:
        self._write_back = True
        self._set_write_through()

    def close(self) -> None:
        if hasattr(self, "slot"):
            self.slot.forget(self._try_lock)
            self.slot.unwatch(self._events)
        for part in (self._image, self._overlay):
            if part is not None:
                part.close()
        if self._events >= 0:
            os.close(self._events)
            self._events = -1


def _number(options: dict[str, str], key: str, default: int, *, most: int = 1 << 62) -> int:
    text = options.get(key, "")
    if not text:
        return default
    if not text.isdecimal() or int(text) > most:
        raise BadInput(f"{key}={text!r} is no number that it can have")
    return int(text)


def _limits(options: dict[str, str]) -> block.Limits:
    """Return a disk's token buckets, which may be its group's."""
    group = options.get("group", "")
    limits = _groups.get(group) if group else None
    if limits is None:
        limits = block.Limits()
        _set_limits(limits, options)
        if group:
            _groups[group] = limits
    return limits


def _set_limits(limits: block.Limits, options: dict[str, str]) -> None:
    for rate_key, burst_key, change in (
        ("iops", "iops_burst", limits.set_operations),
        ("bps", "bps_burst", limits.set_bytes),
    ):
        rate = _number(options, rate_key, 0)
        burst = _number(options, burst_key, 0) or max(rate // BURST_SHARE, 1)
        change(rate, burst)
