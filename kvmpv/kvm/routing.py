"""GSI routes: which interrupt an irqfd, or a pin of the interrupt controllers, becomes."""

from __future__ import annotations

from struct import Struct

from . import uapi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


_HEADER = Struct(uapi.FORMAT_IRQ_ROUTING)
_MSI = Struct(uapi.FORMAT_IRQ_ROUTING_ENTRY_MSI)
_PIN = Struct(uapi.FORMAT_IRQ_ROUTING_ENTRY_IRQCHIP)
_LOW = 0xFFFF_FFFF


class MsiRoute:
    """Make a GSI a message: ``data`` written to ``address``, as a PCI device would."""

    __slots__ = ("address", "data", "gsi")

    def __init__(self, gsi: int, address: int, data: int) -> None:
        self.gsi = gsi
        self.address = address
        self.data = data

    def pack(self) -> bytes:
        """Return the struct kvm_irq_routing_entry."""
        low, high = self.address & _LOW, self.address >> 32
        return _MSI.pack(self.gsi, uapi.KVM_IRQ_ROUTING_MSI, 0, low, high, self.data)

    def __repr__(self) -> str:
        return f"MsiRoute({self.gsi}, {self.address:#x}, {self.data:#x})"


class IrqchipRoute:
    """Make a GSI a pin of an in-kernel interrupt controller (``KVM_IRQCHIP_*``)."""

    __slots__ = ("chip", "gsi", "pin")

    def __init__(self, gsi: int, chip: int, pin: int) -> None:
        self.gsi = gsi
        self.chip = chip
        self.pin = pin

    def pack(self) -> bytes:
        """Return the struct kvm_irq_routing_entry."""
        return _PIN.pack(self.gsi, uapi.KVM_IRQ_ROUTING_IRQCHIP, 0, self.chip, self.pin)

    def __repr__(self) -> str:
        return f"IrqchipRoute({self.gsi}, {self.chip}, {self.pin})"


def encode(routes: Iterable[MsiRoute | IrqchipRoute]) -> bytearray:
    """Return the routes as a struct kvm_irq_routing."""
    packed = [route.pack() for route in routes]
    return bytearray(_HEADER.pack(len(packed), 0) + b"".join(packed))
