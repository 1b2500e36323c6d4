"""The worker's orders: what its command line says. All descriptors in it are inherited.

    name=DOMAIN control=FD log=FD lifeline=FD ready=FD restart=1
    device=NUMBER,KIND,FD[,key=value...]         (once a device; FD: a connected vhost-user socket)
    device=NUMBER,KIND,listen=FD[,key=value...]  (front ends connect to it, one after the other)

A value that has a comma, a blank, a line's end or a percent sign holds it as %XX. Whoever starts a
worker has checked what a user said; what is wrong here is a bug.
"""

from __future__ import annotations

from kvmpv.errors import BadInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

DEVICES_MAX: Final = 48
ESCAPED: Final = frozenset(b"%, \t\r\n")


class DeviceOrders:
    """One device: its number, kind, options, and the descriptor of its front end, or -1."""

    __slots__ = ("fd", "kind", "listens", "number", "options")

    def __init__(
        self, number: int, kind: str, fd: int, listens: bool, options: dict[str, str]
    ) -> None:
        self.number = number
        self.kind = kind
        self.fd = fd
        self.listens = listens  # fd is a listening socket
        self.options = options


class Orders:
    """One worker's orders; descriptors are -1 where there is none."""

    __slots__ = ("control", "devices", "lifeline", "log", "name", "ready", "restart")

    def __init__(self) -> None:
        self.name = "domain"
        self.control = self.lifeline = self.log = self.ready = -1
        self.restart = 0
        self.devices: list[DeviceOrders] = []


def parse(arguments: list[str]) -> Orders:
    """Return the orders that ``key=value`` arguments give; raise ``BadInput``."""
    orders = Orders()
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "device":
            orders.devices.append(device(value))
        elif key == "name":
            orders.name = value
        elif key in ("control", "lifeline", "log", "ready", "restart"):
            setattr(orders, key, int(value))
        else:
            raise BadInput(f"a worker has no order {key!r}")
    return orders


def device(text: str, fd: int | None = None) -> DeviceOrders:
    """Return one device's orders; ``fd`` stands in the text unless it is given here.

    Raise ``BadInput`` for what is none.
    """
    words = text.split(",")
    try:
        number, kind = int(words[0]), words[1]
        options = [words.pop(2)] if fd is None else [f"{fd}"]
        listens = options[0].startswith("listen=")
        socket = int(options[0].removeprefix("listen="))
        pairs = [word.partition("=") for word in words[2:]]
    except (ValueError, IndexError):
        raise BadInput(f"a device's orders are NUMBER,KIND,FD,key=value..., not {text!r}") from None
    if not 0 <= number < DEVICES_MAX:
        raise BadInput(f"devices have numbers from 0 to {DEVICES_MAX - 1}, not {number}")
    return DeviceOrders(
        number, kind, socket, listens, {key: unescape(value) for key, _, value in pairs}
    )


def escape(value: str) -> str:
    """Return a value as it can stand in orders."""
    encoded = value.encode("utf-8", "surrogateescape")
    return b"".join(b"%%%02X" % c if c in ESCAPED else bytes([c]) for c in encoded).decode(
        "utf-8", "surrogateescape"
    )


def unescape(value: str) -> str:
    """Return a value as it was before ``escape``."""
    first, *rest = value.encode("utf-8", "surrogateescape").split(b"%")
    decoded = first + b"".join(bytes([int(part[:2], 16)]) + part[2:] for part in rest)
    return decoded.decode("utf-8", "surrogateescape")
