"""The virtio transport over the guest ABI: pages, queues by record, doorbells, event channels.

What a device is, kvmpv.virtio.device knows; docs/abi/virtio.md is the guest's view. A call may wait
for a backend, so each runs ``aside``: a pause does not wait for it. Lock order: a device's lock,
then that of the event channels; neither is held while a vCPU waits to go on.
"""

from __future__ import annotations

import time

from kvmpv import abi
from kvmpv.hypercall.buffers import buffer, record
from kvmpv.virtio.queue import Queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final, Protocol

    from kvmpv.hypercall.events import EventChannels
    from kvmpv.memory import GuestMemory
    from kvmpv.virtio.device import Device

    class Doorbells(Protocol):
        """What turns a guest's ``out`` into an eventfd's signal."""

        def doorbell(self, port: int, queue: int, fd: int, *, on: bool) -> None:
            """Have the eventfd signalled by an ``out`` of the queue's number to the port, or not.

            Raises KvmError.
            """

    Aside = Callable[[int, Callable[[], int]], int]

PAGE: Final = 4096
FIRST_PATIENCE: Final = 30.0  # seconds that a call may wait for a backend that has never been there
PATIENCE: Final = 10.0  # the same, where one was there and its successor is on its way
STEP: Final = 0.005  # seconds between two looks


class VirtioTransport:
    """All devices of one boot of a guest. ``devices`` is shared with who adds and removes them.

    ``aside(cpu, work)`` runs work that may take long, ``ending()`` says that nobody waits any more.
    """

    def __init__(
        self,
        memory: GuestMemory,
        events: EventChannels,
        devices: dict[int, Device],
        doorbells: Doorbells,
        aside: Aside,
        ending: Callable[[], bool],
    ) -> None:
        self._memory = memory
        self._events = events
        self._devices = devices
        self._doorbells = doorbells
        self._aside = aside
        self._ending = ending
        self._pages: dict[int, memoryview] = {}  # of the devices that are open
        self._generations: dict[int, int] = {}  # of the config that the pages show
        self._channels: dict[int, int] = {}  # for changes
        events.on_close.append(self._forget_channel)
        for device in devices.values():
            device.transport = self

    # ---- calls

    def devices(self, _cpu: int, *_: int) -> int:
        """KVMPV_HC_VIRTIO_DEVICES."""
        known = list(self._devices.items())
        return sum(1 << number for number, each in known if not (each.removed or each.leaving))

    def open(self, cpu: int, number: int, address: int, *_: int) -> int:
        """KVMPV_HC_VIRTIO_OPEN."""
        device = self._devices.get(number)
        gone = device is None or device.removed or device.leaving
        if device is None or (gone and number not in self._pages):
            return -abi.ENOENT
        if address % PAGE:
            return -abi.EINVAL
        page = record(self._memory, address, abi.VIRTIO_PAGE_VERSION, abi.VIRTIO_PAGE)
        if isinstance(page, int):
            return page
        return self._aside(cpu, lambda: self._open(device, page))

    def _open(self, device: Device, page: memoryview) -> int:
        # One that has died before it said anything has a successor.
        self._wait(lambda: device.known or device.refused or device.removed, FIRST_PATIENCE)
        if not device.known:
            return -abi.EIO
        number = device.number
        with device.lock:
            if number in self._pages:
                return -abi.EBUSY
            if device.removed:
                return -abi.EIO
            size = int.from_bytes(page[2:4], "little")
            page[:] = abi.pack_virtio_page(
                size,
                device.model.kind,
                device.offered,
                abi.DOORBELL_PORT + 4 * number,
                device.model.rings,
                device.status,
                2 * device.generation,
                device.model.config,
            )
            self._pages[number] = page
            self._generations[number] = device.generation
        return 0

    def status(self, cpu: int, number: int, status: int, features: int, *_: int) -> int:
        """KVMPV_HC_VIRTIO_STATUS."""
        device = self._opened(number)
        if device is None:
            return -abi.ENOENT
        return self._aside(cpu, lambda: self._status(device, status, features))

    def _status(self, device: Device, status: int, features: int) -> int:
        result = self._patiently(device, lambda: device.write_status(status, features))
        with device.lock:
            self._show_status(device)
        # A reset that cannot be, for a dead backend's requests may be under way: the page's status
        # is the answer, and is not 0.
        return 0 if result == -abi.EIO else result

    def queue(self, cpu: int, number: int, address: int, *_: int) -> int:
        """KVMPV_HC_VIRTIO_QUEUE."""
        device = self._opened(number)
        if device is None:
            return -abi.ENOENT
        found = record(self._memory, address, abi.VIRTIO_QUEUE_VERSION, abi.VIRTIO_QUEUE)
        if isinstance(found, int):
            return found
        asked = abi.unpack_virtio_queue(bytes(found))
        return self._aside(cpu, lambda: self._queue(device, asked))

    def _queue(self, device: Device, asked: abi.VirtioQueue) -> int:
        if not asked.ring_size:
            return self._patiently(device, lambda: device.stop_queue(asked.index))
        if asked.channel != abi.NO_CHANNEL and asked.channel not in self._events:
            return -abi.ENOENT
        queue = Queue(asked.index, 0)
        queue.size, queue.vector = asked.ring_size, asked.channel
        queue.descriptors, queue.available = asked.descriptors, asked.driver
        queue.used = asked.device
        with device.lock:
            return device.set_queue(asked.index, queue)

    def config(self, cpu: int, number: int, offset: int, address: int, length: int, *_: int) -> int:
        """KVMPV_HC_VIRTIO_CONFIG."""
        device = self._opened(number)
        if device is None:
            return -abi.ENOENT
        if offset + length > len(device.model.config):
            return -abi.EINVAL
        found = buffer(self._memory, address, length)
        if isinstance(found, int):
            return found
        data = bytes(found)
        return self._aside(cpu, lambda: self._config(device, offset, data))

    def _config(self, device: Device, offset: int, data: bytes) -> int:
        if not self._wait(lambda: device.link.connected or device.removed):
            return 0  # nobody is there to take it: the page shows what is so
        with device.lock:
            result = device.write_config(offset, data)
        return 0 if result == -abi.EIO else result

    def bind(self, _cpu: int, number: int, channel: int, *_: int) -> int:
        """KVMPV_HC_VIRTIO_BIND."""
        if self._opened(number) is None:
            return -abi.ENOENT
        if channel != abi.NO_CHANNEL and channel not in self._events:
            return -abi.ENOENT
        self._channels[number] = channel
        self._events.send(channel)
        return 0

    def close(self, cpu: int, number: int, *_: int) -> int:
        """KVMPV_HC_VIRTIO_CLOSE."""
        device = self._opened(number)
        if device is None:
            return -abi.ENOENT
        return self._aside(cpu, lambda: self._close(device))

    def _close(self, device: Device) -> int:
        self._patiently(device, device.reset)
        number = device.number
        gone = device.removed or device.leaving
        with device.lock:
            device.abandon()
            self._pages.pop(number, None)
            self._channels.pop(number, None)
            if gone and self._devices.get(number) is device:
                del self._devices[number]
        if gone:
            device.close()
        return 0

    def is_open(self, number: int) -> bool:
        """Tell whether the guest has a device open."""
        return number in self._pages

    def _opened(self, number: int) -> Device | None:
        return self._devices.get(number) if number in self._pages else None

    def _patiently(self, device: Device, work: Callable[[], int]) -> int:
        """Do work on a device again until it is no more -EAGAIN; -EIO when that takes too long."""
        results = []

        def done() -> bool:
            with device.lock:
                results.append(work())
            return results[-1] != -abi.EAGAIN

        return results[-1] if self._wait(done) else -abi.EIO

    def _wait(self, done: Callable[[], bool], seconds: float = PATIENCE) -> bool:
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline or self._ending():
                return False
            time.sleep(STEP)
        return True

    def _forget_channel(self, channel: int) -> None:
        for number, bound in list(self._channels.items()):
            if bound == channel:
                self._channels[number] = abi.NO_CHANNEL

    # ---- what devices ask of their transport, with their lock held

    def connect(self, device: Device, queues: list[Queue]) -> None:
        """Route the queues' interrupts, in one change of the table, and their doorbells."""
        self._events.connect(
            [(queue.vector, queue.call) for queue in queues if queue.vector != abi.NO_CHANNEL]
        )
        port = abi.DOORBELL_PORT + 4 * device.number
        for queue in queues:
            self._doorbells.doorbell(port, queue.index, queue.kick, on=True)
            queue.connected = True

    def disconnect(self, device: Device, queues: list[Queue]) -> None:
        """Take doorbells and interrupts away."""
        port = abi.DOORBELL_PORT + 4 * device.number
        for queue in queues:
            if queue.connected:
                self._doorbells.doorbell(port, queue.index, queue.kick, on=False)
                queue.connected = False
        self._events.disconnect([queue.call for queue in queues])

    def changed(self, device: Device) -> None:
        """Show what is new in the page, and send the event."""
        page = self._pages.get(device.number)
        if page is None:
            return
        if self._generations[device.number] != device.generation:
            self._generations[device.number] = device.generation
            generation = 2 * device.generation & 0xFFFFFFFF
            abi.poke_u32(page, "generation", generation - 1 & 0xFFFFFFFF)
            at = abi.VIRTIO_PAGE.offset["config"]
            page[at : at + len(device.model.config)] = device.model.config
            abi.poke_u32(page, "generation", generation)
        abi.poke_u32(page, "removed", int(device.removed))
        self._show_status(device)
        self._events.send(self._channels.get(device.number, abi.NO_CHANNEL))

    def _show_status(self, device: Device) -> None:
        page = self._pages.get(device.number)
        if page is not None:
            abi.poke_u32(page, "status", device.status)
