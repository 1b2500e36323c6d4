"""A network card: queues between a front end and a tap, carried by our threads or the kernel's.

Options: ``tap=NAME`` or ``tapfds=FD:FD...`` (one for each pair), ``queues=PAIRS``, ``mac=``,
``mtu=``, ``vhost=auto|on|off``, and the limits ``bps``, ``bps_burst``, ``pps``, ``pps_burst``.
"""

from __future__ import annotations

import os

from kvmpv.dataplane.net import Pair, Plane, Queue
from kvmpv.dom0 import vhost
from kvmpv.dom0.slot import ServedDevice
from kvmpv.errors import BadInput, VhostUserError
from kvmpv.hostnet import tap
from kvmpv.vhostuser import message
from kvmpv.virtio import spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from kvmpv.dom0.slot import Slot
    from kvmpv.vhostuser.device import Vring
    from kvmpv.vhostuser.shared import MemoryRegion

LIMITS: Final = ("bps", "bps_burst", "pps", "pps_burst")
MAX_PAIRS: Final = 31
MTU_MAX: Final = 0xFFFF  # what the config space has room for
HEADER_LEGACY: Final = 10  # without VERSION_1 and MRG_RXBUF (virtio 1.2, 5.1.6.1)

RING_FEATURES: Final = spec.mask(spec.F_INDIRECT_DESC, spec.F_EVENT_IDX, spec.F_VERSION_1)
# What front ends serve by themselves is offered too: they ask back ends for it none the less.
FEATURES: Final = RING_FEATURES | spec.mask(
    *(spec.NET_F_MTU, spec.NET_F_MAC, spec.NET_F_STATUS, spec.NET_F_CTRL_VQ),
    *(spec.NET_F_MRG_RXBUF, spec.NET_F_CSUM, spec.NET_F_GUEST_CSUM),
    *(spec.NET_F_HOST_TSO4, spec.NET_F_HOST_TSO6, spec.NET_F_HOST_ECN, spec.NET_F_HOST_UFO),
    *(spec.NET_F_GUEST_TSO4, spec.NET_F_GUEST_TSO6, spec.NET_F_GUEST_ECN, spec.NET_F_GUEST_UFO),
)
USO: Final = spec.mask(spec.NET_F_GUEST_USO4, spec.NET_F_GUEST_USO6, spec.NET_F_HOST_USO)
OFFLOADS: Final = (
    (spec.NET_F_GUEST_CSUM, tap.TUN_F_CSUM),
    (spec.NET_F_GUEST_TSO4, tap.TUN_F_TSO4),
    (spec.NET_F_GUEST_TSO6, tap.TUN_F_TSO6),
    (spec.NET_F_GUEST_ECN, tap.TUN_F_TSO_ECN),
    (spec.NET_F_GUEST_UFO, tap.TUN_F_UFO),
    (spec.NET_F_GUEST_USO4, tap.TUN_F_USO4),
    (spec.NET_F_GUEST_USO6, tap.TUN_F_USO6),
)


class NetDevice(ServedDevice):
    """A card behind a vhost-user session; queue 2n receives and 2n + 1 transmits (5.1.2)."""

    protocol_features = (
        message.PF_CONFIG
        | message.PF_INFLIGHT_SHMFD
        | message.PF_LOG_SHMFD
        | message.PF_MQ
        | message.PF_NET_MTU
    )

    def __init__(self, options: dict[str, str]) -> None:
        self._mac = options.get("mac", "")
        self._mtu = _number(options, "mtu")
        self._limits = {name: _number(options, name) for name in LIMITS}
        wanted = options.get("vhost", "auto")
        self._in_kernel = wanted == "on" or (
            wanted == "auto" and not any(self._limits.values()) and vhost.available()
        )
        self._plane = Plane()
        self._plane.limit(*(self._limits[name] for name in LIMITS))
        self._features = 0
        self._log = (0, 0)
        self._queues: dict[int, Carried] = {}
        self._kernel_pairs: list[vhost.Pair] = []
        self._own_pairs: list[Pair] = []
        self._totals: dict[str, int] = {}
        self._memory: list[tuple[int, int, int]] = []
        self._taps = _taps(options)
        self.name = tap.name_of(self._taps[0])
        self.queue_count = 2 * len(self._taps)
        self._broken = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self.features = FEATURES
        self._several = tap.has_queues(self._taps[0])
        if tap.set_offload(self._taps[0], tap.TUN_F_CSUM | tap.TUN_F_USO4 | tap.TUN_F_USO6):
            self.features |= USO
        tap.set_offload(self._taps[0], 0)
        if len(self._taps) > 1:
            self.features |= spec.mask(spec.NET_F_MQ)
            for fd in self._taps[1:]:  # until the driver wants more than the first pair
                tap.set_queue(fd, attached=False)
        if self._in_kernel:
            self.protocol_features &= ~message.PF_LOG_SHMFD
            self._kernel_pairs = [vhost.Pair(fd) for fd in self._taps]
            ours = RING_FEATURES | spec.mask(spec.NET_F_MRG_RXBUF)
            self.features &= ~ours | self._kernel_pairs[0].features
        else:
            self._own_pairs = [Pair(self._plane, fd) for fd in self._taps]

    def attach(self, slot: Slot) -> None:
        """Take the place in the worker: it hears of rings that break."""
        super().attach(slot)
        slot.watch(self._broken, self._ring_broke)

    # ---- what a session asks

    def config(self) -> bytes:
        """Return struct virtio_net_config (5.1.4)."""
        mac = bytes.fromhex(self._mac.replace(":", "")) if self._mac else bytes(6)
        pairs = len(self._taps)
        config: bytes = spec.NET_CONFIG.pack(mac, spec.NET_S_LINK_UP, pairs, self._mtu)
        return config

    def set_mtu(self, mtu: int) -> None:
        """Take the guest's MTU; the tap has its own, and drops what is too long for it."""
        if mtu > MTU_MAX:
            raise VhostUserError(f"an MTU of {mtu} cannot be had")
        self._mtu = mtu

    def set_features(self, features: int) -> None:
        """Set header and offloads of the tap to what the driver accepted."""
        self._features = features
        for fd in self._taps:
            tap.set_header(fd, self._header)
        flags = 0
        for feature, flag in OFFLOADS:
            flags |= flag if features >> feature & 1 else 0
        tap.set_offload(self._taps[0], flags if flags & tap.TUN_F_CSUM else 0)
        for pair in self._kernel_pairs:
            pair.set_features(features)
        self._use_log()

    @property
    def _header(self) -> int:
        modern = spec.mask(spec.F_VERSION_1, spec.NET_F_MRG_RXBUF)
        return tap.VNET_HEADER if self._features & modern else HEADER_LEGACY

    def set_memory(self, regions: list[MemoryRegion]) -> None:
        """Take the guest's memory."""
        self._memory = [(region.gpa, region.size, region.address) for region in regions]
        self._plane.set_memory(self._memory)
        self._use_log()
        for pair in self._kernel_pairs:
            if self._memory:
                pair.set_memory(self._memory)

    def set_log(self, address: int, size: int, eventfd: int) -> None:
        """Take the dirty log; queues stand still meanwhile."""
        del eventfd  # for those who look at the log seldom: it is looked at often
        self._log = (address, size)
        running = [queue for queue in self._queues.values() if queue.running]
        for queue in running:
            queue.pause()
        self._use_log()
        for queue in running:
            queue.go_on()

    def _use_log(self) -> None:
        wanted = self._features & message.F_LOG_ALL
        self._plane.set_log(*(self._log if wanted else (0, 0)))

    def start_queue(self, index: int, vring: Vring) -> None:
        """Serve a queue, once it is enabled."""
        if self._in_kernel and vring.kick < 0:
            raise VhostUserError("the kernel polls no queue", hint="give it a kick, or vhost=off")
        base = -1 if vring.inflight else vring.base
        queue: Carried
        if self._in_kernel:
            queue = KernelQueue(self._kernel_pairs[index // 2], index % 2, vring, base)
        else:
            queue = OwnQueue(self._make_queue(index, vring, base), bool(index % 2))
        self._queues[index] = queue
        if vring.enabled:  # else it waits: what a guest sent meanwhile shall not be lost
            queue.enable(True)

    def _make_queue(self, index: int, vring: Vring, base: int) -> Queue:
        return Queue(
            self._own_pairs[index // 2],
            bool(index % 2),
            vring.num,
            vring.desc,
            vring.avail,
            vring.used,
            features=self._features,
            base=base,
            kick=vring.kick,
            call=vring.call,
            err=vring.err,
            broken=self._broken,
            header=self._header,
            mergeable=bool(self._features >> spec.NET_F_MRG_RXBUF & 1),
        )

    def stop_queue(self, index: int) -> int:
        """Serve a queue no more; all that it took is done."""
        queue = self._queues.pop(index, None)
        if queue is None:
            return 0
        base = queue.stop()
        self._note(index, queue.counters)
        return base

    def set_enabled(self, index: int, enabled: bool) -> None:
        """Let a queue carry packets or not; a tap sends only to queues that are read."""
        if self._several and index >= 2 and not index % 2:
            tap.set_queue(self._taps[index // 2], attached=enabled)
        if index in self._queues:
            self._queues[index].enable(enabled)

    def reset(self) -> None:
        """Forget the driver."""
        self._features = 0

    def close(self) -> None:
        """End it; a tap that was handed over stays open for the next."""
        for index in list(self._queues):
            self.stop_queue(index)
        for pair in self._kernel_pairs:
            pair.close()
        self._kernel_pairs.clear()
        self._own_pairs.clear()
        for fd in self._taps:
            os.close(fd)
        self._taps.clear()
        if self._broken >= 0:
            if hasattr(self, "slot"):
                self.slot.unwatch(self._broken)
            os.close(self._broken)
            self._broken = -1

    # ---- what the worker asks

    def _ring_broke(self) -> None:
        """Stop the whole device: its driver has gone wrong, or worse."""
        os.eventfd_read(self._broken)
        faults = {index: queue.fault for index, queue in self._queues.items() if queue.fault}
        for index, fault in faults.items():
            self.slot.log(f"queue {index} is broken by its driver: {fault}")
        if not faults:
            if not any(queue.stalled for queue in self._queues.values()):
                return  # the one that broke is gone, and others may have come
            self.slot.log("a queue has stopped: no thread can be started for it")
        for queue in self._queues.values():
            queue.pause()

    def _note(self, index: int, counters: dict[str, int]) -> None:
        for name, value in counters.items():
            key = f"{'tx' if index % 2 else 'rx'}_{name}"
            self._totals[key] = self._totals.get(key, 0) + value

    def stats(self) -> dict[str, int]:
        """Return the counters of both directions, all pairs together, and who carries."""
        before = dict(self._totals)
        for index, queue in self._queues.items():
            self._note(index, queue.counters)
        found, self._totals = self._totals, before
        return {"vhost": int(self._in_kernel), "queues": len(self._taps), **found}

    def limit(self, limits: dict[str, str]) -> None:
        """Set other limits; raise ``BadInput`` where the kernel carries, and knows none."""
        unknown = set(limits) - set(LIMITS)
        if unknown:
            raise BadInput(f"a network has no limit {min(unknown)!r}", hint=" ".join(LIMITS))
        if self._in_kernel:
            raise BadInput("vhost-net knows no limits", hint="start it with vhost=off")
        self._limits |= {name: _number(limits, name) for name in limits}
        self._plane.limit(*(self._limits[name] for name in LIMITS))


class OwnQueue:
    """A queue that a thread of ours serves."""

    def __init__(self, queue: Queue, transmit: bool) -> None:
        self._queue = queue
        self._transmit = transmit
        self.running = False

    def enable(self, enabled: bool) -> None:
        """Carry packets or not: nothing is received then, and what is sent is lost."""
        self._queue.discard = not enabled
        if enabled or self._transmit:
            self.go_on()
        else:
            self.pause()

    def pause(self) -> None:
        """Stand still."""
        self._queue.stop()
        self.running = False

    def go_on(self) -> None:
        """Serve it, unless its driver has broken it."""
        if not self._queue.fault:
            self._queue.start()
            self.running = True

    def stop(self) -> int:
        """End it; return the index of the next available entry."""
        return self._queue.stop()

    @property
    def stalled(self) -> bool:
        """Whether no thread could be started for it."""
        return self._queue.stalled

    @property
    def fault(self) -> str:
        """How its driver broke it."""
        return self._queue.fault

    @property
    def counters(self) -> dict[str, int]:
        """What was counted."""
        return self._queue.counters


class KernelQueue:
    """A queue that the kernel serves."""

    fault = ""  # the kernel tells the front end by itself
    stalled = False

    def __init__(self, pair: vhost.Pair, index: int, vring: Vring, base: int) -> None:
        self._pair = pair
        self._index = index
        self._vring = vring
        self._base = base
        self.running = False
        self.counters: dict[str, int] = {}

    def enable(self, enabled: bool) -> None:
        """Carry packets or not."""
        if enabled:
            self.go_on()
        else:
            self.pause()

    def pause(self) -> None:
        """Stand still."""
        if self.running:
            self._base = self._pair.stop(self._index)
            self.running = False

    def go_on(self) -> None:
        """Serve it from where it stopped."""
        if not self.running:
            self._pair.start(self._index, self._vring, self._base)
            self.running = True

    def stop(self) -> int:
        """End it; return the index of the next available entry."""
        self.pause()
        return max(self._base, 0)


if TYPE_CHECKING:
    Carried = OwnQueue | KernelQueue


def _taps(options: dict[str, str]) -> list[int]:
    """Return descriptors of our own, one for each pair."""
    pairs = _number(options, "queues") or 1
    if not 1 <= pairs <= MAX_PAIRS:
        raise BadInput(f"queues={pairs}: 1 to {MAX_PAIRS} pairs are possible")
    if given := options.get("tapfds"):
        return [os.dup(int(fd)) for fd in given.split(":")]
    if name := options.get("tap"):
        return tap.open_named(name, pairs)
    raise BadInput("a network card needs tap=NAME or tapfds=FD:FD...")


def _number(options: dict[str, str], name: str) -> int:
    text = options.get(name, "0")
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise BadInput(f"{name}={text} is no number")
    return int(text)
