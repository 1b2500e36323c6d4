"""The VMM's orders: what its command line says. All descriptors in it are inherited.

    name=NAME kvm=FD memory=GPA:SIZE:FD:OFFSET (once a region) kernel=FD initrd=FD cmdline=TEXT
    vcpus=N max_vcpus=N cpu=SPEC terminal=FD exec=FD control=FD end=FD report=FD lifeline=FD
    instance=HEX generation=N stats=1 trace=FD started=NS
    device=NUMBER,KIND,FD[,key=value...] (once a device; ',' and '%' in a value are %2C and %25)

Whoever starts a VMM has checked what a user said; what is wrong here is a bug.
"""

from __future__ import annotations


class DeviceOrder:
    """One device: its backend is at the other end of the socket ``fd``."""

    __slots__ = ("fd", "kind", "number", "options")

    def __init__(self, number: int, kind: str, fd: int, options: dict[str, str]) -> None:
        self.number = number
        self.kind = kind
        self.fd = fd
        self.options = options


class Orders:
    """One domain's orders; descriptors are -1 where there is none."""

    __slots__ = (
        "cmdline",
        "control",
        "cpu",
        "devices",
        "end",
        "exec",
        "generation",
        "initrd",
        "instance",
        "kernel",
        "kvm",
        "lifeline",
        "max_vcpus",
        "memory",
        "name",
        "report",
        "started",
        "stats",
        "terminal",
        "trace",
        "vcpus",
    )

    def __init__(self) -> None:
        self.name = "domain"
        self.cmdline = ""
        self.cpu = "host"
        self.memory: list[tuple[int, int, int, int]] = []
        self.devices: list[DeviceOrder] = []
        self.instance = ""
        self.kvm = self.kernel = self.initrd = self.terminal = self.exec = -1
        self.control = self.end = self.report = self.lifeline = self.trace = -1
        self.vcpus = self.max_vcpus = 1
        self.generation = self.stats = self.started = 0


def parse(arguments: list[str]) -> Orders:
    """Return the orders that ``key=value`` arguments give."""
    orders = Orders()
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "memory":
            gpa, size, fd, offset = (int(part, 0) for part in value.split(":"))
            orders.memory.append((gpa, size, fd, offset))
        elif key == "device":
            orders.devices.append(_device(value))
        elif isinstance(getattr(orders, key), int):
            setattr(orders, key, int(value, 0))
        else:
            setattr(orders, key, value)
    return orders


def _device(text: str) -> DeviceOrder:
    number, kind, fd, *options = text.split(",")
    return DeviceOrder(int(number), kind, int(fd), parse_options(options))


def parse_options(words: list[str]) -> dict[str, str]:
    """Return the options that ``key=value`` words give, with %XX decoded in the values."""
    options = {}
    for word in words:
        key, _, value = word.partition("=")
        first, *rest = value.encode().split(b"%")
        decoded = first + b"".join(bytes([int(part[:2], 16)]) + part[2:] for part in rest)
        options[key] = decoded.decode("utf-8", "replace")
    return options
