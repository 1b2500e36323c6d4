"""The VMM's orders: what its command line says. All descriptors in it are inherited.

    name=NAME kvm=FD memory=GPA:SIZE:FD:OFFSET (once a region) kernel=FD initrd=FD cmdline=TEXT
    vcpus=N max_vcpus=N cpu=SPEC terminal=FD exec=FD control=FD end=FD report=FD lifeline=FD
    instance=HEX generation=N stats=1 trace=FD started=NS

Whoever starts a VMM has checked what a user said; what is wrong here is a bug.
"""

from __future__ import annotations


class Orders:
    """One domain's orders; descriptors are -1 where there is none."""

    __slots__ = (
        "cmdline",
        "control",
        "cpu",
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
        elif isinstance(getattr(orders, key), int):
            setattr(orders, key, int(value, 0))
        else:
            setattr(orders, key, value)
    return orders
