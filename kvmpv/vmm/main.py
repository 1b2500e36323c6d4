"""One domain's process: it puts the machine and the handlers together, and watches over them.

The main thread waits in one epoll: for the control socket, the ports, its owner and the machine's
end. The vCPUs run in threads of their own. Nothing is opened or imported after ``main`` begins.
"""

from __future__ import annotations

import _socket
import _thread
import os
import select
import time

from kvmpv import abi, memory
from kvmpv._rest import QUIET, rest
from kvmpv.errors import HostError, KvmpvError, printable
from kvmpv.hypercall.events import EventChannels
from kvmpv.hypercall.ports import READABLE, WRITABLE, Port, Ports
from kvmpv.hypercall.requests import Requests
from kvmpv.hypercall.scheduling import Scheduling
from kvmpv.hypercall.table import Version, handlers
from kvmpv.hypercall.vcpus import Vcpus
from kvmpv.kvm import System, kick_signal
from kvmpv.machine import report
from kvmpv.machine.boot import BootInfo
from kvmpv.machine.cpu_model import CpuModel
from kvmpv.machine.machine import Machine
from kvmpv.machine.processor import KICK_SIGNAL
from kvmpv.vmm.control import Control
from kvmpv.vmm.counters import counters
from kvmpv.vmm.orders import Orders, parse
from kvmpv.vmm.trace import Trace

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable

    from kvmpv.virtio.device import Device
    from kvmpv.vmm.devices import Devices
else:
    import _signal as signal  # signal itself imports enum, which takes a third of our start

RESET_PATIENCE = 30.0  # seconds that a reboot waits for requests that are under way
STARTED_WELL = ("poweroff", "killed")


class Domain:
    """The domain that this process is, across its reboots."""

    def __init__(self, orders: Orders, devices: Devices | None) -> None:
        terminated = _follow_signals()
        self.orders = orders
        self.times: dict[str, int] = {"main": time.monotonic_ns()}
        self.boots = 0
        self.system = _system(orders.kvm)
        self.memory = memory.map_regions(orders.memory)
        self.model = CpuModel(orders.cpu)
        self.ports = [_port(orders.terminal), _port(orders.exec)]
        self.epoll = select.epoll()
        self._ready: dict[int, Callable[[int], None]] = {}
        self._killed = ""
        self.devices = devices
        if devices is not None:
            devices.attach(self.memory, self._crash, self._devices_changed, self._bug)
            for order in orders.devices:
                devices.add(order)
        self.watch(terminated, lambda _: self.kill("the domain's process was terminated"))
        if orders.lifeline >= 0:
            self.watch(orders.lifeline, lambda _: self.kill("the domain's owner is gone"))
        for number, port in enumerate(self.ports):
            if port.open:
                self._watch_port(number)
        self.control = Control(self, orders.control) if orders.control >= 0 else None

    # ---- descriptors

    def watch(self, fd: int, ready: Callable[[int], None]) -> None:
        """Call ``ready`` with the events whenever ``fd`` is readable or hung up."""
        self._ready[fd] = ready
        self.epoll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """Watch a descriptor no more."""
        del self._ready[fd]
        self.epoll.unregister(fd)

    def _watch_port(self, number: int) -> None:
        fd = self.ports[number].socket.fileno()
        self._ready[fd] = self._notify(number)
        # Once: a hang-up is told even to those who ask for nothing, and would be for ever.
        self.epoll.register(fd, select.EPOLLONESHOT)

    def attach(self, number: int, socket: _socket.socket) -> None:
        """Give a port another stream; who has the old one reads its end of file."""
        port = self.ports[number]
        if port.socket.fileno() in self._ready:
            self.unwatch(port.socket.fileno())
        port.attach(socket)
        self._watch_port(number)
        self.guest_ports.notify(number)

    def _notify(self, number: int) -> Callable[[int], None]:
        return lambda _: self.guest_ports.notify(number)

    def _arm(self, number: int, waits: int) -> None:
        """Send the port's event once it is ready; called from a vCPU's thread."""
        events = select.EPOLLONESHOT
        events |= select.EPOLLIN | select.EPOLLRDHUP if waits & READABLE else 0
        events |= select.EPOLLOUT if waits & WRITABLE else 0
        try:
            self.epoll.modify(self.ports[number].socket.fileno(), events)
        except OSError:
            pass  # the port is getting another stream just now, and its guest an event for that

    # ---- life

    def boot(self) -> Machine:
        """Make the machine, load it, and start it."""
        orders = self.orders
        machine = Machine(self.system, self.memory, self.model, orders.max_vcpus)
        self.times.setdefault("vm", time.monotonic_ns())
        self.machine = machine
        self._connect(machine)
        self.watch(machine.ended, lambda _: None)
        info = BootInfo(os.fsencode(orders.cmdline), list(range(orders.max_vcpus)), orders.vcpus)
        info.generation = orders.generation
        info.instance = bytes.fromhex(orders.instance).rjust(16, b"\0")
        try:
            machine.load(orders.kernel, orders.initrd, info)
        except KvmpvError as error:
            machine.end(-1, "bad-input", str(error))
            return machine
        if self._killed:
            machine.end(-1, "killed", self._killed)
            return machine
        self.boots += 1
        self.times.setdefault("run", time.monotonic_ns())
        self.cpu_at_run = time.process_time_ns()
        machine.start()
        # Beside the guest, which would wait for it otherwise.
        _thread.start_new_thread(self.memory.collapse, (machine.loaded,))
        return machine

    def _connect(self, machine: Machine) -> None:
        for port in self.ports:
            port.reset()
        self.version = Version()
        self.events = EventChannels(self.memory, machine.signal_msi, machine)
        self.guest_ports = Ports(self.memory, self.events, self.ports, self._arm)
        self.requests = Requests(self.memory, self.events)
        machine.handlers = handlers(
            self.version,
            self.guest_ports,
            self.events,
            self.requests,
            Scheduling(self.memory, machine.end),
            Vcpus(self.memory, machine.vcpu_up, machine.vcpu_down),
            self.devices.boot(machine, self.events) if self.devices else None,
        )
        if self.orders.trace >= 0:
            trace = Trace(self.orders.trace)
            machine.handlers = trace.handlers(machine.handlers)
            machine.trace = trace.exit

    def run(self) -> int:
        """Run the domain to its end, through its reboots; return the exit status."""
        while True:
            machine = self.boot()
            while not machine.ending:
                if not self._attend(QUIET):
                    rest(self.epoll.fileno())
            self.times["end"] = time.monotonic_ns()
            self.unwatch(machine.ended)
            if self._killed and machine.kind == "reboot":  # which was first, and leads nowhere
                machine.kind, machine.message = "killed", self._killed
            again = machine.kind == "reboot"
            if self.devices is not None:
                self._leave_devices(self.devices, machine, again)
            if not again:
                self._write_end(machine)
                # The VM's own end, which may take long, is the kernel's when this process ends.
                return 0 if machine.kind in STARTED_WELL else 1
            machine.close()
            # Who speaks with the guest's agent must learn that it is another one now.
            self.ports[abi.PORT_EXEC].hang_up()
            self.memory.clear()

    def _attend(self, timeout: float) -> bool:
        """See to what is ready within that many seconds; return whether anything was."""
        found = self.epoll.poll(timeout)
        for fd, events in found:
            self._ready[fd](events)
        return bool(found)

    def _leave_devices(self, devices: Devices, machine: Machine, again: bool) -> None:
        """Bring all devices to where a guest's boot finds them, or end them."""
        if not again:
            devices.cut()
            return
        machine.stop()
        reset: list[Device] = []
        count = devices.reset_all(reset)
        deadline = time.monotonic() + RESET_PATIENCE
        # Meanwhile next backends may come by the control socket.
        while len(reset) < count and time.monotonic() < deadline:
            self._attend(0.02)
            if self._killed:
                break
        if len(reset) < count:
            devices.cut()
        devices.abandon_all()

    def pause(self) -> None:
        """Stop all vCPUs between two instructions."""
        self.machine.pause()

    def resume(self) -> None:
        """Let the vCPUs run on."""
        self.machine.resume()
        if self.devices is not None:
            self.devices.resumed()

    def _crash(self, message: str) -> None:
        self.machine.end(-1, "crash", message)

    def _bug(self, error: BaseException) -> None:
        self.machine.end_by_bug(-1, error)

    def _devices_changed(self) -> None:
        self.ask(abi.REQUEST_DEVICES)

    def kill(self, why: str) -> None:
        """End the domain at once."""
        self._killed = why
        if hasattr(self, "machine"):
            self.machine.end(-1, "killed", why)

    def ask(self, request: int, **values: int) -> bool:
        """Ask something of the guest; return whether it listens."""
        return self.requests.ask(request, **values)

    # ---- the end

    def _write_end(self, machine: Machine) -> None:
        machine.stop()
        if machine.kind not in (*STARTED_WELL, "bad-input"):
            text = report.write_report(machine, self.orders.name, bytes(self.guest_ports.last))
            os.write(self.orders.report, text.encode())
        stats = self.counters() if self.orders.stats else {}
        os.write(self.orders.end, _facts(machine.kind, report.headline(machine), **stats))

    def counters(self) -> dict[str, int]:
        """Return all that is counted about this domain, by name."""
        facts = counters(self.machine)
        facts["events_sent"] = self.events.sent
        facts["log_records"] = self.guest_ports.log_records
        facts["log_bytes_dropped"] = self.guest_ports.log_dropped
        facts["interrupt_reroutes"] = self.events.reroutes
        facts["boots"] = self.boots
        if self.devices is not None:
            facts |= self.devices.counters(self.machine)
        facts["cpu_ns"] = time.process_time_ns() - self.cpu_at_run
        start = self.orders.started or self.times["main"]
        for name, moment in self.times.items():
            facts[f"ns_to_{name}"] = moment - start
        return facts


def _follow_signals() -> int:
    """Return a descriptor that becomes readable at SIGTERM.

    A handler in Python does not run while epoll waits, nor at all if the signal comes just before
    that: only what C writes wakes it in any case.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return reader


def _system(fd: int) -> System:
    try:
        return System(fd)
    except HostError as error:
        raise HostError(f"/dev/kvm: {error.message}", hint="see kvmpv doctor") from None


def _port(fd: int) -> Port:
    if fd < 0:
        return Port(None)
    socket = _socket.socket(fileno=fd)
    socket.setblocking(False)
    return Port(socket)


def _facts(kind: str, message: str, **more: int) -> bytes:
    """Return what the end's file holds; the message may be a guest's, and stays one line."""
    lines = [f"kind={kind}", f"message={printable(message)}"]
    lines += [f"stat.{key}={value}" for key, value in more.items()]
    return "\n".join([*lines, ""]).encode()


def _load_devices() -> Devices:
    """Load what devices need: a quarter of all that the start loads, and many domains have none."""
    from kvmpv.vmm.devices import Devices

    return Devices()


def main(arguments: list[str]) -> None:
    """Run the domain that the arguments describe, and leave without looking back."""
    orders = parse(arguments)
    devices = _load_devices() if orders.devices else None
    kick_signal(KICK_SIGNAL)
    try:
        status = Domain(orders, devices).run()
    except KvmpvError as error:
        status = error.exit_status
        os.write(orders.end, _facts("bad-input" if status == 2 else "failed", str(error)))
    # No interpreter shutdown: everything that this process has, the kernel takes back faster.
    os._exit(status)
