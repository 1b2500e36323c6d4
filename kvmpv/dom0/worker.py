"""The worker: the devices of one domain in one process, and what is told to it from outside."""

from __future__ import annotations

import _socket
import os
import time

from kvmpv.dom0.loop import Loop
from kvmpv.dom0.slot import ServedDevice, Slot
from kvmpv.errors import BadInput, KvmpvError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from kvmpv.dom0.orders import DeviceOrders
    from kvmpv.vhostuser.device import Device

# By kind: the module and the class in it. Loaded when a device of that kind is first wanted.
KINDS: Final = {
    "blk": ("kvmpv.dom0.block", "BlockDevice"),
    "net": ("kvmpv.dom0.net", "NetDevice"),
    "rng": ("kvmpv.dom0.rng", "RngDevice"),
    "vsock": ("kvmpv.dom0.vsock", "VsockDevice"),
}


def device_class(kind: str) -> Callable[[dict[str, str]], Device]:
    """Return the class of a kind of device; raise ``BadInput`` for one that there is not."""
    if kind not in KINDS:
        raise BadInput(f"there are no devices of the kind {kind!r}", hint=", ".join(KINDS))
    module, name = KINDS[kind]
    loaded = __import__(module, fromlist=[name])
    made: Callable[[dict[str, str]], Device] = getattr(loaded, name)
    return made


class Worker:
    """The devices of one domain."""

    def __init__(self, name: str, log: int) -> None:
        self.name = name
        self.loop = Loop()
        self.slots: dict[int, Slot] = {}
        self._log_fd = log
        self._ended = ""

    def log(self, text: str) -> None:
        """Write a line to the log; one that cannot be written is lost."""
        line = "".join(c if c.isprintable() else "?" for c in text)
        try:
            os.write(self._log_fd, f"kvmpv-dom0 {self.name}: {line}\n".encode())
        except OSError:
            pass

    def add(self, orders: DeviceOrders) -> Slot:
        """Make a device, and serve it to whom its orders say.

        Raise ``BadInput`` where it cannot be; its descriptor is closed then.
        """
        socket = _socket.socket(fileno=orders.fd)
        try:
            if orders.number in self.slots:
                raise BadInput(f"there is a device {orders.number} already")
            slot = Slot(orders, device_class(orders.kind), self.loop, self.log)
            slot.open()
        except BaseException:
            socket.close()
            raise
        self.slots[orders.number] = slot
        if orders.listens:
            slot.listen(socket)
        else:
            slot.connect(socket)
        return slot

    def add_failed(self, orders: DeviceOrders, error: KvmpvError) -> None:
        """Keep the place of a device that could not be made: it may be tried again."""
        slot = Slot(orders, device_class(orders.kind), self.loop, self.log)
        self.slots[orders.number] = slot
        slot.fail(str(error))

    def slot(self, number: int) -> Slot:
        """Return a device's place; raise ``BadInput`` where there is none."""
        if number not in self.slots:
            raise BadInput(f"there is no device {number}")
        return self.slots[number]

    def remove(self, number: int) -> None:
        """End a device and forget it."""
        self.slot(number).close()
        del self.slots[number]

    def resize(self, number: int) -> bool:
        """Have a device look at its size; say whether that has changed."""
        slot = self.slot(number)
        if not isinstance(slot.device, ServedDevice) or not slot.device.resize():
            return False
        slot.config_changed()
        return True

    def resize_all(self) -> None:
        """Have all devices look at their sizes; what one cannot is logged."""
        for number in sorted(self.slots):
            try:
                self.resize(number)
            except KvmpvError as error:
                self.log(f"resize {number}: {error}")

    def limit(self, number: int, limits: dict[str, str]) -> None:
        """Set a device's limits."""
        slot = self.slot(number)
        if not isinstance(slot.device, ServedDevice):
            raise BadInput(f"device {number} has no limits")
        slot.device.limit(limits)

    def stats(self) -> dict[str, int]:
        """Return all that is counted, a device's own under its number."""
        facts = {"cpu_ns": time.process_time_ns()}
        for number, slot in sorted(self.slots.items()):
            facts[f"{number}.sessions"] = slot.sessions
            facts[f"{number}.failures"] = slot.failures
            if isinstance(slot.device, ServedDevice):
                for name, value in slot.device.stats().items():
                    facts[f"{number}.{name}"] = value
        return facts

    def end(self, why: str) -> None:
        """Leave the loop after this turn; the first reason is the one that counts."""
        self._ended = self._ended or why
        self.loop.ending = True

    def run(self) -> None:
        """Serve until told to end, then end all devices in good order."""
        self.loop.run()
        for slot in self.slots.values():
            slot.close()
        self.log(f"ends: {self._ended}")
