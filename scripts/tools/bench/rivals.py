"""Our guest and QEMU's, both up with the same kernel, memory and tools: a shell, and counters."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import kvmpv
from kvmpv.errors import HostError
from kvmpv.toolstack import defaults
from scripts.tools.bench import guest_tools, qemu, shell
from scripts.tools.bench.exits import UserExits
from scripts.tools.bench.figures import Figure

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

MEMORY = 256  # MiB
SETTLE, SECONDS = 0.5, 1.5
OWN_CMDLINE = f'kvmpv.net=off kvmpv.run="{shell.COMMAND}"'
CMDLINE = f"loglevel=4 panic=-1 reboot=t console=ttyS0 {OWN_CMDLINE}"
_BLOCKS = ("rd_operations", "wr_operations")


class Guest:
    """One of the two; use it in a ``with``."""

    name: str
    shell: shell.Shell

    def __init__(self, pid: int) -> None:
        self._user_exits = UserExits(pid)
        self._stack = ExitStack()
        self._stack.callback(self._user_exits.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def user_exits(self) -> int:
        """Return how often its vCPU left the kernel."""
        return self._user_exits.count()

    def kvm(self) -> dict[str, int]:
        """Return KVM's statistics by name."""
        raise NotImplementedError

    def disk_operations(self) -> int:
        """Return the requests of its first disk that are done."""
        raise NotImplementedError


class Ours(Guest):
    """A domain with devices as ``kvmpv run`` takes them."""

    name = "kvmpv"

    def __init__(self, *, disks: list[str], nets: list[str]) -> None:
        tools = f"{guest_tools.image()},readonly,format=raw,serial={guest_tools.SERIAL}"
        self._domain = kvmpv.Domain(
            disks=[*disks, tools], nets=nets, memory=MEMORY << 20, cmdline=OWN_CMDLINE
        )
        with ExitStack() as stack:
            stack.enter_context(self._domain)
            self.shell = shell.Shell(self._domain.terminal, self.name)
            super().__init__(self._domain.pid)
            self._stack.push(stack.pop_all())

    def kvm(self) -> dict[str, int]:
        """Return KVM's statistics by name."""
        return {key.removeprefix("kvm_"): value for key, value in self._domain.stats().items()}

    def disk_operations(self) -> int:
        """Return the requests of its first disk that are done."""
        stats = self._domain.stats()
        return stats["device0_reads"] + stats["device0_writes"]


class Theirs(Guest):
    """A microvm with the given options for its devices."""

    name = "QEMU"

    def __init__(self, options: list[str]) -> None:
        argv = qemu.arguments(defaults.kernel(), memory=MEMORY, cpu="host", serial=True)
        tools = (
            "driver=raw,node-name=tools,read-only=on,file.driver=file,file.locking=off,"
            f"file.filename={guest_tools.image()}"  # our worker's lock is on the whole file in 9p
        )
        ours, theirs = socket.socketpair()
        argv += [
            *("-initrd", defaults.initrd(), "-append", CMDLINE),
            *("-chardev", f"socket,id=s,fd={theirs.fileno()}", "-serial", "chardev:s"),
            *("-global", "virtio-mmio.force-legacy=false", *options, "-blockdev", tools),
            *("-device", f"virtio-blk-device,drive=tools,serial={guest_tools.SERIAL}"),
        ]
        with ExitStack() as stack:
            stack.enter_context(ours)
            with theirs:
                self._qmp = qemu.Qmp(argv, pass_fds=[theirs.fileno()])
            stack.callback(self._qmp.close)
            self._qmp.ask("cont")
            self.shell = shell.Shell(ours, self.name)
            super().__init__(self._qmp.process.pid)
            self._stack.push(stack.pop_all())

    def kvm(self) -> dict[str, int]:
        """Return KVM's statistics by name."""
        return self._qmp.stats()

    def disk_operations(self) -> int:
        """Return the requests of its first disk that are done."""
        answer = self._qmp.ask("query-blockstats")
        assert isinstance(answer, list)
        disk = next(one["stats"] for one in answer if one.get("node-name") == "disk")
        return sum(int(disk[key]) for key in _BLOCKS)


class Sample(NamedTuple):
    """What a guest did and cost in a while; the costs are for each unit of what it did."""

    rate: float  # units a second
    exits: float
    user_exits: float
    interrupts: float  # all that it was given, its timer's too
    device_interrupts: float


def measure(guest: Guest, done: Callable[[], float]) -> Sample:
    """Let a guest's load work for a while; ``done`` counts in the unit that it is measured in."""
    idle = _device_interrupts(guest), done()
    guest.shell.work()
    time.sleep(SETTLE)
    before = _look(guest, done)
    time.sleep(SECONDS)
    after = _look(guest, done)
    guest.shell.rest()
    own = (_device_interrupts(guest) - idle[0]) / max(1.0, done() - idle[1])
    seconds, units, *costs = (new - old for new, old in zip(after, before, strict=True))
    exits, user_exits, interrupts = (cost / max(1.0, units) for cost in costs)
    return Sample(units / seconds, exits, user_exits, interrupts, own)


def _device_interrupts(guest: Guest) -> int:
    """Ask the guest, while it rests: KVM does not tell what an interrupt is for."""
    return int(guest.shell.run("awk '/virtio/ { n += $2 } END { print n }' /proc/interrupts"))


def _look(guest: Guest, done: Callable[[], float]) -> tuple[float, ...]:
    units, now, user = done(), time.monotonic(), guest.user_exits()
    kvm = guest.kvm()
    return now, units, kvm["exits"], user, kvm["irq_injections"]


def warm_up(guest: Guest, done: Callable[[], float], units: float) -> None:
    """Let a load come as far as that it does what it is for; raise HostError when it does not."""
    until = time.monotonic() + shell.PATIENCE
    start = done()
    guest.shell.work()
    while done() - start < units:
        if time.monotonic() > until:
            raise HostError(f"{guest.name}: the load does nothing", hint=guest.shell.unload())
        time.sleep(0.1)
    guest.shell.rest()


class Units(NamedTuple):
    """What a job is measured in: its rate, counted units a second in that, and the name of one."""

    rate: str
    scale: float
    each: str


def compare(name: str, units: Units, samples: list[list[Sample]]) -> list[Figure]:
    """Return a job's figures: the rate of both sides, and what each unit costs."""
    peer = f"QEMU {qemu.version()}"

    def middle(key: str, scale: float = 1.0) -> tuple[float, float]:
        ours, theirs = ([float(getattr(one, key)) * scale for one in kept] for kept in samples)
        return median(ours), median(theirs)

    costs = {
        "exits": ("exits", 1.0),
        "exits to user space": ("user_exits", 1.0),
        "interrupts": ("interrupts", 1.0),
        "interrupts of devices": ("device_interrupts", 0),  # a part of them, to explain them
    }
    return [
        Figure(name, units.rate, *middle("rate", units.scale), peer, 1.0, more=True),
        *(
            Figure(f"  {what}, {units.each}", "", *middle(key), peer, limit)
            for what, (key, limit) in costs.items()
        ),
    ]
