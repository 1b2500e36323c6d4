"""The virtio devices of this domain, and the thread that watches over their backends.

That thread alone waits for backends' ends and wishes, so that one that does not answer holds up
neither the main thread nor a vCPU of a guest that does not use it.
"""

from __future__ import annotations

import _socket
import _thread
import os
import resource
import select
import time

from kvmpv import abi
from kvmpv.errors import BadInput
from kvmpv.hypercall.virtio import VirtioTransport
from kvmpv.virtio import spec
from kvmpv.virtio.device import Device
from kvmpv.virtio.models import model
from kvmpv.vmm.orders import DeviceOrder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from kvmpv.hypercall.events import EventChannels
    from kvmpv.machine.machine import Machine
    from kvmpv.memory import GuestMemory

RESET_STEP: Final = 0.02  # seconds
LOSS: Final = ("reset", "crash")
KINDS: Final = {number: kind for kind, number in spec.KINDS.items()}


class Devices:
    """All devices of the domain; ``attach`` comes first."""

    if TYPE_CHECKING:
        crash: Callable[[str], None]  # ends the domain
        _announce: Callable[[], None]
        _bug: Callable[[BaseException], None]
        _memory: GuestMemory

    def __init__(self) -> None:
        self.devices: dict[int, Device] = {}
        self._transport: VirtioTransport | None = None
        self._epoll = select.epoll()
        self._ready: dict[int, Callable[[], None]] = {}
        self._work: list[Callable[[], None]] = []
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._started = False
        self.watch(self._wake, self._do_work)

    def attach(
        self,
        memory: GuestMemory,
        crash: Callable[[str], None],
        announce: Callable[[], None],
        bug: Callable[[BaseException], None],
    ) -> None:
        """Learn about the domain. ``crash(message)`` ends it, ``announce()`` tells of a change.

        ``bug(error)`` is given what is a fault of this program.
        """
        # Each queue has two descriptors, and what a guest sets up must not use up what we need.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self._memory = memory
        self.crash = crash
        self._announce = announce
        self._bug = bug

    # ---- the thread

    def watch(self, fd: int, ready: Callable[[], None], events: int = select.EPOLLIN) -> None:
        """Have the thread call ``ready`` whenever these events are on a descriptor."""
        self._ready[fd] = ready
        self._epoll.register(fd, events)

    def unwatch(self, fd: int) -> None:
        """Watch a descriptor no more; no error if nobody did."""
        if self._ready.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def _do_soon(self, work: Callable[[], None]) -> None:
        self._work.append(work)
        os.eventfd_write(self._wake, 1)
        if not self._started:
            self._started = True
            _thread.start_new_thread(self._main, ())

    def _do_work(self) -> None:
        os.eventfd_read(self._wake)
        while self._work:
            self._work.pop(0)()

    def _main(self) -> None:
        try:
            while True:
                for fd, _ in self._epoll.poll():
                    ready = self._ready.get(fd)
                    if ready is not None:  # not unwatched since
                        ready()
        except BaseException as error:  # a bug of ours ends the domain, and is named
            self._bug(error)

    # ---- coming and going

    def add(self, order: DeviceOrder) -> Device:
        """Make a device, and let its backend be asked what it offers. Raises BadInput."""
        loss = order.options.get("loss", LOSS[0])
        if loss not in LOSS:
            raise BadInput(f"loss={loss}: {' or '.join(LOSS)} are possible")
        if order.number in self.devices or not 0 <= order.number < abi.MAX_DEVICES:
            raise BadInput(f"device {order.number} is there already, or no number of a device")
        made = model(order.kind, order.options)
        socket = _socket_of(order.fd)
        device = Device(order.number, made, self._memory, self, loss)
        device.transport = self._transport
        self.devices[order.number] = device
        self._connect_aside(device, socket)
        return device

    def add_next(self, kind: str, options: dict[str, str], fd: int) -> int:
        """Add a device while the guest runs; return its number. Raises BadInput."""
        free = (number for number in range(abi.MAX_DEVICES) if number not in self.devices)
        number = next(free, -1)
        self.add(DeviceOrder(number, kind, fd, options))
        self._do_soon(self._announce)
        return number

    def connect(self, number: int, fd: int) -> bool:
        """Take a new backend for a device; return whether there is such a device.

        Raises BadInput for what is no socket, which then stays the caller's.
        """
        device = self.devices.get(number)
        if device is None or device.removed:
            return False
        self._connect_aside(device, _socket_of(fd))
        return True

    def _connect_aside(self, device: Device, socket: _socket.socket) -> None:
        """Ask a backend what it offers, in a thread of its own: it may take its time."""
        self._do_soon(lambda: None)  # the thread that watches over it is there
        _thread.start_new_thread(self._connect, (device, socket))

    def _connect(self, device: Device, socket: _socket.socket) -> None:
        try:
            if not device.connect(socket):
                complain(f"device {device.number}: {device.why}")
        except BaseException as error:
            self._bug(error)

    def remove(self, number: int, patience: float = 0) -> bool:
        """Take a device away; return whether there was one.

        A guest that has it open gets so many seconds to let it go, in which it works as ever.
        """
        device = self.devices.get(number)
        if device is None or device.removed or (device.leaving and patience):
            return False
        if patience:
            device.leaving = True
            self._do_soon(lambda: self._ask_back(device, patience))
        else:
            self._do_soon(lambda: self._remove(device))
        return True

    def _ask_back(self, device: Device, patience: float) -> None:
        if self._transport is None or not self._transport.is_open(device.number):
            self._remove(device)
            return
        self._announce()
        _thread.start_new_thread(self._wait_and_remove, (device, patience))

    def _wait_and_remove(self, device: Device, patience: float) -> None:
        time.sleep(patience)
        if self.devices.get(device.number) is device:
            self._do_soon(lambda: self._remove(device))

    def _remove(self, device: Device) -> None:
        device.remove()
        if self._transport is None or not self._transport.is_open(device.number):
            self._forget(device)
        self._announce()

    def _forget(self, device: Device) -> None:
        if self.devices.get(device.number) is device:
            del self.devices[device.number]
        device.close()

    # ---- boots, pauses, the end

    def boot(self, machine: Machine, events: EventChannels) -> VirtioTransport:
        """Return the transport of a new boot; all devices are as after a reset."""
        self._transport = VirtioTransport(
            self._memory, events, self.devices, machine, machine.aside, lambda: machine.ending
        )
        return self._transport

    def reset_all(self, reset: list[Device]) -> int:
        """Reset the devices of a guest that has stopped, each in a thread.

        ``reset`` grows by those that are done, up to as many as are returned.
        """
        all_devices = list(self.devices.values())
        for device in all_devices:
            _thread.start_new_thread(self._reset, (device, reset))
        return len(all_devices)

    def _reset(self, device: Device, reset: list[Device]) -> None:
        try:
            while device.transport is not None:
                with device.lock:
                    if device.reset() == 0:
                        break
                time.sleep(RESET_STEP)  # its next backend has to come
        except BaseException as error:
            self._bug(error)
        reset.append(device)

    def abandon_all(self) -> None:
        """Reset the devices whatever their backends do, and forget those that were removed.

        Those that are being reset have been cut off before, if that takes too long.
        """
        for device in list(self.devices.values()):
            with device.lock:
                device.abandon()
                device.transport = None
            if device.removed:
                self._forget(device)

    def resumed(self) -> None:
        """Interrupt the guest for each queue: it was paused, and may miss what it had not seen."""
        for device in list(self.devices.values()):
            self._do_soon(lambda device=device: self._call(device))  # type: ignore[misc]

    def _call(self, device: Device) -> None:
        with device.lock:
            device.call_drivers()

    def cut(self) -> None:
        """Hang up on all backends, so that nobody waits for one: the domain ends."""
        for device in list(self.devices.values()):
            device.link.cut()

    # ---- what is told

    def describe(self) -> dict[str, str | int]:
        """Say what there is, by ``NUMBER.FACT``."""
        facts: dict[str, str | int] = {}
        for number, device in sorted(self.devices.items()):
            facts[f"{number}.kind"] = KINDS[device.model.kind]
            facts[f"{number}.state"] = _state(device)
            facts[f"{number}.queues"] = sum(queue.size > 0 for queue in device.queues)
            facts[f"{number}.backend"] = "connected" if device.link.connected else "away"
            facts[f"{number}.connections"] = device.link.connections
            if device.why:
                facts[f"{number}.why"] = device.why.replace(" ", "_").replace("=", ":")
        return facts

    def counters(self, machine: Machine) -> dict[str, int]:
        """Count what the devices cost, by name."""
        facts = {}
        for number, device in sorted(self.devices.items()):
            facts[f"device{number}_doorbell_exits"] = machine.doorbell_exits[number]
            facts[f"device{number}_restarts"] = max(0, device.link.connections - 1)
        return facts


def _socket_of(fd: int) -> _socket.socket:
    try:
        return _socket.socket(fileno=fd)
    except OSError:
        raise BadInput("what came as a backend is no socket") from None


def _state(device: Device) -> str:
    if device.removed:
        return "removed"
    if device.status & spec.NEEDS_RESET:
        return "needs-reset"
    if device.status & spec.DRIVER_OK:
        return "running"
    return "starting" if device.status else "unused"


def complain(text: str) -> None:
    """Write a line to the domain's log."""
    try:
        os.write(2, f"{text}\n".encode())
    except OSError:
        return  # nobody is there to read it
