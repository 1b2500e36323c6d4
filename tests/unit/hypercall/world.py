"""All handlers of one guest, over real memory and sockets, with a machine that only takes notes."""

from __future__ import annotations

import os
import select
import socket
from typing import TYPE_CHECKING, Self

from kvmpv import abi, memory
from kvmpv.hypercall.events import EventChannels
from kvmpv.hypercall.ports import Port, Ports
from kvmpv.hypercall.requests import Requests
from kvmpv.hypercall.scheduling import Scheduling
from kvmpv.hypercall.table import Version, handlers
from kvmpv.hypercall.vcpus import Vcpus
from kvmpv.hypercall.virtio import VirtioTransport
from kvmpv.virtio import models
from kvmpv.virtio.device import Device

if TYPE_CHECKING:
    from collections.abc import Callable

RAM = 1 << 20
MESSAGE = 0xFEE00000


class Wiring:
    """What KVM would do with doorbells and interrupts, as a note."""

    def __init__(self) -> None:
        self.routes: list[tuple[int, int, int]] = []
        self.irqfds: dict[int, int] = {}  # eventfd: GSI
        self.doorbells: dict[tuple[int, int], int] = {}  # port and queue: eventfd
        self.tables = 0

    def set_routes(self, routes: list[tuple[int, int, int]]) -> None:
        self.routes = routes
        self.tables += 1

    def irqfd(self, fd: int, gsi: int, *, on: bool) -> None:
        if on:
            self.irqfds[fd] = gsi
        else:
            assert self.irqfds.pop(fd) == gsi

    def doorbell(self, port: int, queue: int, fd: int, *, on: bool) -> None:
        if on:
            assert (port, queue) not in self.doorbells
            self.doorbells[port, queue] = fd
        else:
            assert self.doorbells.pop((port, queue)) == fd


class Host:
    """What a device's process does for it: nothing, and it is written down."""

    def __init__(self) -> None:
        self.watched: dict[int, Callable[[], None]] = {}
        self.crashes: list[str] = []

    def watch(self, fd: int, ready: Callable[[], None], events: int = 1) -> None:
        assert fd not in self.watched
        self.watched[fd] = ready

    def unwatch(self, fd: int) -> None:
        self.watched.pop(fd, None)

    def crash(self, message: str) -> None:
        self.crashes.append(message)

    def turn(self) -> None:
        """Call whoever would be called now, as long as there is somebody."""
        poll = select.poll()
        for fd in self.watched:
            poll.register(fd, select.POLLIN | select.POLLRDHUP)
        for fd, _ in poll.poll(0):
            if fd in self.watched:
                self.watched[fd]()


class World:
    """The handlers, and what they did to the machine."""

    def __init__(self) -> None:
        self.fd = memory.create_memfd("test", RAM)
        self.memory = memory.map_regions([(0, RAM, self.fd, 0)])
        self.signals: list[tuple[int, int]] = []
        self.ends: list[tuple[int, str, str]] = []
        self.ups: list[tuple[int, abi.VcpuStart]] = []
        self.armed: list[tuple[int, int]] = []
        self.streams: list[socket.socket] = []
        self.ports_made = [self._port() for _ in range(abi.MAX_PORTS)]
        self.version = Version()
        self.wiring = Wiring()
        self.events = EventChannels(self.memory, self._signal, self.wiring)
        self.ports = Ports(self.memory, self.events, self.ports_made, self._watch)
        self.requests = Requests(self.memory, self.events)
        scheduling = Scheduling(self.memory, lambda *end: self.ends.append(end))
        vcpus = Vcpus(self.memory, self._up, lambda _: -abi.EBUSY)
        self.host = Host()
        self.devices: dict[int, Device] = {}
        self.virtio = VirtioTransport(
            self.memory,
            self.events,
            self.devices,
            self.wiring,
            lambda _, work: work(),
            lambda: True,
        )
        self.table = handlers(
            self.version, self.ports, self.events, self.requests, scheduling, vcpus, self.virtio
        )

    def add_device(self, number: int, kind: str, **options: str) -> Device:
        """Add a device whose backend is away, having offered all that there is."""
        made = models.model(kind, options)
        device = Device(number, made, self.memory, self.host)
        device.offered, device.known = made.offered((1 << 64) - 1), True
        if made.config_from_backend:
            made.refresh(lambda _, size: bytes(size))
        device.transport = self.virtio
        self.devices[number] = device
        return device

    def _port(self) -> Port:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        ours.setblocking(False)
        self.streams.append(ours)
        return Port(theirs)

    def _signal(self, address: int, data: int) -> int:
        self.signals.append((address, data))
        return 1

    def _watch(self, number: int, waits: int) -> None:
        self.armed.append((number, waits))

    def _up(self, apic_id: int, start: abi.VcpuStart) -> int:
        self.ups.append((apic_id, start))
        return 0

    def call(self, number: int, *arguments: int) -> int | None:
        """Make a call as the exit loop does, with zeroes where no argument is given."""
        padded = [*arguments, 0, 0, 0, 0, 0][:5]
        return self.table[number](0, *padded)

    def channel(self, vector: int) -> int:
        """Allocate a channel and bind it to a vector."""
        channel = self.call(abi.HC_EVTCHN_ALLOC)
        assert channel is not None
        record = abi.EVTCHN_BIND.pack(1, abi.EVTCHN_BIND.size, 1, abi.EVTCHN_MESSAGE.size)
        self.memory.write(0x8000, record + abi.EVTCHN_MESSAGE.pack(MESSAGE, vector, channel))
        assert self.call(abi.HC_EVTCHN_BIND, 0x8000) == 0
        return channel

    def close(self) -> None:
        for device in self.devices.values():
            device.close()
        for stream in self.streams:
            stream.close()
        for port in self.ports_made:
            port.socket.close()
        self.memory.close()
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
