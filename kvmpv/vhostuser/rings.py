"""A session's rings: gathered message by message, checked as a whole, then given to the device.

A ring runs from its kick (SET_VRING_KICK) to its GET_VRING_BASE; whether it is enabled is apart
from that (docs/interop/vhost-user.rst, Ring states).
"""

from __future__ import annotations

import os

from kvmpv.errors import VhostUserError
from kvmpv.vhostuser import message, shared
from kvmpv.vhostuser.device import Vring

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from kvmpv.vhostuser.device import Device
    from kvmpv.vhostuser.message import Message
    from kvmpv.vhostuser.shared import Mapping, MemoryRegion

EVENTFD: Final = "anon_inode:[eventfd]"
BASE_MAX: Final = 0xFFFF
DESCRIPTOR_SIZE: Final = 16


class Ring(Vring):
    """A ring as its front end has described it so far."""

    __slots__ = ("addresses", "running")

    def __init__(self) -> None:
        super().__init__()
        self.addresses: tuple[int, int, int] | None = None  # the front end's own
        self.running = False

    def close(self) -> None:
        """Close its descriptors."""
        for fd in (self.kick, self.call, self.err):
            if fd >= 0:
                os.close(fd)
        self.kick = self.call = self.err = -1


class Rings:
    """All rings of a session's device."""

    def __init__(self, device: Device, regions: list[MemoryRegion]) -> None:
        self._device = device
        self._regions = regions
        self._rings: dict[int, Ring] = {}
        self._features = 0
        self._inflight: Mapping | None = None
        self._inflight_queues = self._inflight_ring_size = 0

    def _ring(self, index: int) -> Ring:
        if index >= self._device.queue_count:
            raise VhostUserError(f"the device has no queue {index}")
        ring = self._rings.get(index)
        if ring is None:
            ring = self._rings[index] = Ring()
        return ring

    def _running(self) -> list[int]:
        return [index for index, ring in self._rings.items() if ring.running]

    # ---- what the front end says of one ring

    def set_num(self, got: Message) -> None:
        """SET_VRING_NUM."""
        index, num = message.STATE.unpack(got.payload)
        ring = self._stopped(index, "size")
        if not 1 <= num <= message.RING_MAX or num & (num - 1):
            raise VhostUserError(f"queue {index} with {num} entries")
        ring.num = num

    def set_base(self, got: Message) -> None:
        """SET_VRING_BASE."""
        index, base = message.STATE.unpack(got.payload)
        ring = self._stopped(index, "base")
        if base > BASE_MAX:
            raise VhostUserError(f"queue {index} from entry {base:#x}")
        ring.base = base

    def _stopped(self, index: int, what: str) -> Ring:
        ring = self._ring(index)
        if ring.running:
            raise VhostUserError(f"another {what} for queue {index}, which runs")
        return ring

    def set_addresses(self, got: Message) -> None:
        """SET_VRING_ADDR; of a ring that runs it may change whether its writes are logged."""
        index, flags, desc, used, avail, log = message.ADDRESSES.unpack(got.payload)
        ring = self._ring(index)
        if not self._regions:
            raise VhostUserError(f"addresses of queue {index} before there is memory")
        if not ring.num:
            raise VhostUserError(f"addresses of queue {index} before its size")
        if flags & ~message.VRING_LOG:
            raise VhostUserError(f"addresses of queue {index} with flags {flags:#x}")
        running = self._pause([index]) if ring.running else []
        ring.addresses = (desc, used, avail)
        ring.log = bool(flags & message.VRING_LOG)
        ring.used_gpa = log
        self._place(index, ring)
        self.go_on(running)

    def _place(self, index: int, ring: Ring) -> None:
        """Find the ring's parts in our memory; each of them lies in one region, and aligned."""
        if ring.addresses is None:
            raise VhostUserError(f"queue {index} has no addresses")
        desc, used, avail = ring.addresses
        # Virtio 1.2, 2.7: 16, 4 and 2 bytes are the alignments; 6 bytes are what frames a ring.
        ring.desc = self._part(index, desc, DESCRIPTOR_SIZE * ring.num, 16)
        ring.used = self._part(index, used, 6 + 8 * ring.num, 4)
        ring.avail = self._part(index, avail, 6 + 2 * ring.num, 2)

    def _part(self, index: int, user_address: int, length: int, alignment: int) -> int:
        found = shared.translate(self._regions, user_address, length)
        if not found or user_address % alignment or found % alignment:
            raise VhostUserError(
                f"queue {index}: {length} bytes at {user_address:#x} are no place for a ring"
            )
        return found

    # ---- descriptors

    def eventfd(self, got: Message) -> int:
        """Take the eventfd out of a message, made non-blocking; -1 if there is none."""
        if not got.fds:
            return -1
        fd = got.fds[0]
        try:
            kind = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            kind = ""
        if kind != EVENTFD:  # a write to anything else may block, or worse
            raise VhostUserError(f"request {got.request} with a descriptor that is no eventfd")
        os.set_blocking(fd, False)
        del got.fds[0]
        return fd

    def _event(self, got: Message) -> tuple[int, Ring, int]:
        value: int = message.U64.unpack(got.payload)[0]
        if value & ~(message.VRING_INDEX_MASK | message.VRING_NO_FD):
            raise VhostUserError(f"request {got.request} for queue {value:#x}")
        if bool(value & message.VRING_NO_FD) == bool(got.fds):
            raise VhostUserError(f"request {got.request} with {len(got.fds)} descriptors")
        index = value & message.VRING_INDEX_MASK
        ring = self._ring(index)
        return index, ring, self.eventfd(got)

    def set_kick(self, got: Message) -> None:
        """SET_VRING_KICK: from here on the ring runs."""
        index, ring, fd = self._event(got)
        if ring.running:
            self._pause([index])
        if ring.kick >= 0:
            os.close(ring.kick)
        ring.kick = fd
        self._start(index, ring)

    def set_call(self, got: Message) -> None:
        """SET_VRING_CALL; the number stays when the eventfd behind it becomes another one."""
        _, ring, fd = self._event(got)
        if fd < 0:
            fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        _replace(ring, "call", fd)

    def set_err(self, got: Message) -> None:
        """SET_VRING_ERR."""
        _, ring, fd = self._event(got)
        if fd < 0:
            fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        _replace(ring, "err", fd)

    # ---- states

    def _start(self, index: int, ring: Ring) -> None:
        if not self._regions or not ring.num:
            raise VhostUserError(f"queue {index} is started before it has memory and size")
        self._place(index, ring)
        ring.inflight = 0
        if self._inflight is not None:
            if index >= self._inflight_queues or ring.num > self._inflight_ring_size:
                raise VhostUserError(f"queue {index} is too large for the in-flight log")
            part = message.inflight_queue_size(self._inflight_ring_size)
            ring.inflight = self._inflight.address + index * part
        if ring.call < 0:
            ring.call = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._device.start_queue(index, ring)
        ring.running = True

    def _stop(self, index: int, ring: Ring) -> None:
        ring.running = False
        ring.base = self._device.stop_queue(index) & BASE_MAX

    def _pause(self, running: list[int]) -> list[int]:
        for index in running:
            self._stop(index, self._rings[index])
        return running

    def pause(self) -> list[int]:
        """Stop all rings that run, and return them, for ``go_on``."""
        return self._pause(self._running())

    def go_on(self, running: list[int]) -> None:
        """Start rings again where they stopped."""
        for index in running:
            self._start(index, self._rings[index])

    def get_base(self, got: Message) -> tuple[bytes, int]:
        """GET_VRING_BASE: the ring stops."""
        index, _ = message.STATE.unpack(got.payload)
        ring = self._ring(index)
        if ring.running:
            self._stop(index, ring)
        # Its call stays: QEMU sets it before it sets the ring up, and not each time.
        if ring.kick >= 0:
            os.close(ring.kick)
            ring.kick = -1
        return message.STATE.pack(index, ring.base), -1

    def set_enable(self, got: Message) -> None:
        """SET_VRING_ENABLE."""
        index, enabled = message.STATE.unpack(got.payload)
        if enabled > 1:
            raise VhostUserError(f"queue {index} is neither enabled nor disabled: {enabled}")
        self._enable(index, self._ring(index), bool(enabled))

    def _enable(self, index: int, ring: Ring, enabled: bool) -> None:
        if ring.enabled != enabled:
            ring.enabled = enabled
            self._device.set_enabled(index, enabled)

    def enable_all(self) -> None:
        """Enable every ring, as front ends without protocol features have it."""
        for index in range(self._device.queue_count):
            self._enable(index, self._ring(index), True)

    def disable_all(self) -> None:
        """Disable every ring."""
        for index, ring in self._rings.items():
            self._enable(index, ring, False)

    def change_features(self, features: int) -> None:
        """Take the driver's features; while rings run, only logging may be switched."""
        change = (features ^ self._features) & ~message.F_LOG_ALL
        if change and self._running():
            raise VhostUserError("other features while a queue runs")
        self._features = features
        self._device.set_features(features)

    def use_inflight(self, mapping: Mapping, size: int, queues: int, ring_size: int) -> None:
        """Take the log of requests in flight; no ring runs."""
        if self._running():
            mapping.release()
            raise VhostUserError("another in-flight log while a queue runs")
        before, self._inflight = self._inflight, mapping
        self._inflight_queues, self._inflight_ring_size = queues, ring_size
        self._device.set_inflight(mapping.address, size, queues, ring_size)
        if before is not None:
            before.release()

    def stop_all(self) -> None:
        """Stop all rings that run, whatever goes wrong with some; then raise the first error."""
        errors = []
        for index in self._running():
            try:
                self._stop(index, self._rings[index])
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def reset(self) -> None:
        """Stop and forget all rings, their in-flight log, and what was negotiated."""
        self.stop_all()
        self.disable_all()
        self.close()
        self._rings.clear()
        self._features = 0
        if self._inflight is not None:
            self._device.set_inflight(0, 0, 0, 0)
            self._inflight.release()
            self._inflight = None

    def close(self) -> None:
        """Close all rings' descriptors."""
        for ring in self._rings.values():
            ring.close()


def _replace(ring: Ring, name: str, fd: int) -> None:
    """Put another eventfd behind a number that a thread may be using just now."""
    before = getattr(ring, name)
    if before < 0:
        setattr(ring, name, fd)
        return
    os.dup2(fd, before, inheritable=False)
    os.close(fd)
