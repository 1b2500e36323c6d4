"""The backends of one domain: started before its VMM, watched over, restarted, ended with it.

One thread does all of that. It waits for the processes' ends, and for what others ask of it: their
calls are put into its queue and run there, so that nothing here is locked. Processes that are tied
to the thread that starts them (see ``processes.tied``) live as long as it, which is as long as the
domain.
"""

from __future__ import annotations

import _thread
import os
import select
import time

from kvmpv.abi import MAX_DEVICES
from kvmpv.errors import BadInput, HostError, KvmpvError
from kvmpv.toolstack import devices as parsing
from kvmpv.toolstack import disks, processes
from kvmpv.toolstack.backend import Backend, Foreign, Place, Slot
from kvmpv.toolstack.rundir import DEVICE
from kvmpv.toolstack.worker import SHARED, Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from typing import TypeVar

    from kvmpv.toolstack.config import DomainConfig
    from kvmpv.toolstack.devices import Device
    from kvmpv.toolstack.vmm import Descriptors

    Result = TypeVar("Result")
else:
    import _signal as signal

LET_GO = 5  # seconds that a guest has to let a device go


class _Call:
    """One call that the thread is asked to make."""

    __slots__ = ("action", "done", "error", "result")

    def __init__(self, action: Callable[[], object]) -> None:
        self.action = action
        self.done = _thread.allocate_lock()
        self.done.acquire()
        self.result: object = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """Make the call and keep what came of it."""
        try:
            self.result = self.action()
        except BaseException as error:
            self.error = error
        self.done.release()


class Backends:
    """All backends of one domain.

    ``control`` sends a line to the VMM, with descriptors beside it, and returns the answer.
    """

    def __init__(
        self,
        config: DomainConfig,
        folder: str,
        control: Callable[[str, list[int]], dict[str, str]],
    ) -> None:
        self._config = config
        self._control = control
        self._log = os.open(
            f"{folder}/{DEVICE}log", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        self._place = Place(config.name, folder, self._log)
        self.slots: dict[int, Slot] = {}
        self._backends: list[Backend] = []
        self._cards = 0
        self._restarts = 0
        self._vmm = -1  # the VMM's pidfd, while it is followed
        self._calls: list[_Call] = []
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._ending = False
        self._gone = False  # the thread is, and runs no calls any more
        self._ended = _thread.allocate_lock()
        self._ended.acquire()
        _thread.start_new_thread(self._run, ())

    # ---- the thread

    def _ask(self, action: Callable[[], Result]) -> Result:
        """Have the thread make a call; return what it returned, or raise what it raised."""
        call = _Call(action)
        self._calls.append(call)
        if self._gone:
            self._refuse()
        else:
            os.eventfd_write(self._wake, 1)
        call.done.acquire()
        if call.error is not None:
            raise call.error
        return call.result  # type: ignore[return-value]

    def _run(self) -> None:
        # Signals are for the main thread, whose waits they are to end.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while not self._ending:
            self._wait()
            while self._calls:
                self._calls.pop(0).run()
            self._look_after()
        self._gone = True
        self._refuse()
        self._ended.release()

    def _refuse(self) -> None:
        """Answer calls that came too late."""
        while self._calls:
            call = self._calls.pop()
            call.error = KvmpvError(f"the domain {self._config.name!r} is gone")
            call.done.release()

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        following = self._vmm >= 0
        if following:
            poll.register(self._vmm, select.POLLIN)
            for backend in self._backends:
                if backend.pidfd >= 0:
                    poll.register(backend.pidfd, select.POLLIN)
                for socket in backend.watched.values():
                    poll.register(socket, 0)  # hang-ups are told to those who ask for nothing
        moments = [one.due for one in self._backends if one.due and following]
        timeout = max(min(moments) - time.monotonic(), 0) * 1000 if moments else None
        for fd, _ in poll.poll(timeout):
            if fd == self._wake:
                os.eventfd_read(self._wake)

    def _look_after(self) -> None:
        """See which backends have died, and start those again whose time has come."""
        if self._vmm < 0:
            return
        if _is_readable(self._vmm):
            self._vmm = -1  # the domain has ended: nobody needs them any more
            return
        for backend in self._backends:
            if backend.pidfd >= 0 and _is_readable(backend.pidfd):
                self._place.say(f"{backend.bury()}; it is started again")
            backend.note_hang_ups()
            if backend.restart_at and backend.restart_at <= time.monotonic():
                self._restart(backend)
            for slot in backend.slots:
                if slot.reopen_at and slot.reopen_at <= time.monotonic():
                    self._reopen(backend, slot)

    def _restart(self, backend: Backend) -> None:
        backend.restart_at = 0.0
        try:
            backend.start()
            backend.wait_ready()
            self._bring(backend)
        except KvmpvError as error:
            self._place.say(f"{backend.label} cannot be started again: {error}")
            backend.stop()
            backend.note_death()
            return
        backend.restarts += 1
        self._restarts += 1
        self._place.say(f"{backend.label} runs again")

    def _reopen(self, backend: Backend, slot: Slot) -> None:
        """Connect a device again whose session alone has ended."""
        slot.reopen_at = 0.0
        try:
            backend.reopen(slot)
            self._bring(backend)
        except KvmpvError as error:
            self._place.say(f"{slot.device.label} cannot be served again: {error}")
            slot.note_failure()

    def _bring(self, backend: Backend) -> None:
        """Hand the VMM the new ends of a backend's sockets."""
        taken = backend.take()
        try:
            for number, socket in taken.items():
                self._control(f"backend {number}", [socket.fileno()])
        finally:
            for socket in taken.values():
                socket.close()

    # ---- the start

    def start(self, descriptors: Descriptors) -> None:
        """Start all backends, and give the VMM its ends of their sockets.

        Raises BadInput or HostError; ``close`` then takes back what was made.
        """
        self._ask(lambda: self._start(descriptors))

    def _start(self, descriptors: Descriptors) -> None:
        for number, device in enumerate(self._config.devices):
            self.slots[number] = Slot(number, device, self._config.vcpus)
        self._plan([slot.device for slot in self.slots.values()])
        for slot in self.slots.values():
            self._hold(slot)
        self._backends = self._sort(list(self.slots.values()))
        for backend in self._backends:
            backend.start()
            for number, socket in backend.take().items():
                descriptors.give_device(number, self.slots[number].order, socket.detach())

    def follow(self, vmm: int) -> None:
        """Watch over the backends while the VMM with a pidfd runs; first wait until all serve."""
        self._ask(lambda: self._follow(vmm))

    def _follow(self, vmm: int) -> None:
        for backend in self._backends:
            backend.wait_ready()
        self._vmm = vmm

    def _plan(self, devices: list[Device]) -> None:
        nets = [device.net for device in devices if device.net is not None]
        if nets:
            from kvmpv.hostnet.attachment import plan

            plan(self._config.name, nets)

    def _hold(self, slot: Slot) -> None:
        """Take what a device needs of the host: its image's lock, its tap."""
        device = slot.device
        if device.kind == "blk" and device.source in ("path", "id"):
            taken = [one.image for one in self.slots.values() if one.image is not None]
            slot.image = disks.open_image(device, taken)
            if device.flag("snapshot"):
                slot.make_overlay()
        if device.net is not None and device.net.kind in ("nat", "bridge", "tap"):
            from kvmpv.hostnet.attachment import attach

            slot.card = attach(self._config.name, self._cards, device.net)
            self._cards += 1
        if device.kind == "vsock":
            _check_free(device)

    def _sort(self, slots: list[Slot]) -> list[Backend]:
        """Return the backends that these devices need."""
        found: list[Backend] = []
        shared = []
        for slot in slots:
            backend = self._own_backend(slot)
            if backend is None:
                shared.append(slot)
            else:
                found.append(backend)
        return [Worker(self._place, shared, SHARED), *found] if shared else found

    def _own_backend(self, slot: Slot) -> Backend | None:
        """Return the backend that serves this device alone; None: the domain's worker does."""
        device = slot.device
        if device.source == "vhost-user":
            return Foreign(self._place, [slot])
        if device.kind == "fs" or device.source == "user" or _is_foreign(slot):
            from kvmpv.toolstack import servers

            if device.kind == "fs":
                return servers.FileServer(self._place, [slot])
            kind = servers.Passt if device.source == "user" else servers.StorageDaemon
            return kind(self._place, [slot])
        return self._worker_of(slot) if device.flag("isolate") else None

    def _worker_of(self, slot: Slot) -> Worker:
        return Worker(self._place, [slot], f"worker{slot.number}")

    # ---- changes while it runs

    def add(self, kind: str, given: object, vmm: int) -> int:
        """Give the running domain one more device (disk, net, share); return its number."""
        return self._ask(lambda: self._add(kind, given, vmm))

    def _add(self, kind: str, given: object, vmm: int) -> int:
        self._vmm = vmm
        device = {"disk": parsing.disk, "net": parsing.net, "share": parsing.share}[kind](given)
        others = [slot.device for slot in self.slots.values()]
        parsing.check([*others, device])
        if device.net is not None:
            self._plan_one(device, others)
        slot = Slot(self._free_number(), device, self._config.vcpus)
        self._hold(slot)
        try:
            backend = self._serve(slot)
        except BaseException:
            slot.release()
            raise
        try:
            self._announce(slot, backend)
        except BaseException:
            self._forget(slot, backend)
            raise
        return slot.number

    def _plan_one(self, device: Device, others: list[Device]) -> None:
        from kvmpv.hostnet.attachment import mac_for

        assert device.net is not None
        device.net.mac = device.net.mac or mac_for(self._config.name, self._cards)
        if any(other.net is not None and other.net.mac == device.net.mac for other in others):
            raise device.error(f"the MAC address {device.net.mac} is taken", "choose another one")

    def _free_number(self) -> int:
        # One that the guest has not let go of yet is still the VMM's.
        known = {key.partition(".")[0] for key in self._control("devices", [])}
        for number in range(MAX_DEVICES):
            if number not in self.slots and str(number) not in known:
                return number
        raise BadInput(f"a domain has at most {MAX_DEVICES} devices", hint="detach one first")

    def _serve(self, slot: Slot) -> Backend:
        """Start what serves a new device, or have the worker do it that is there."""
        backend = self._own_backend(slot)
        if backend is None and not slot.fds:
            for worker in self._backends:
                if isinstance(worker, Worker) and worker.shared and worker.pid:
                    worker.add(slot)
                    return worker
        # More descriptors than the socket cannot be handed to a worker that runs.
        backend = backend or self._worker_of(slot)
        try:
            backend.start()
            backend.wait_ready()
        except BaseException:
            backend.stop()
            raise
        self._backends.append(backend)
        return backend

    def _announce(self, slot: Slot, backend: Backend) -> None:
        """Tell the VMM of a new device; the number that it chose becomes the device's."""
        [socket] = backend.take().values()
        kind, *words = slot.order.split(",")
        try:
            answer = self._control(" ".join(["device-add", kind, *words]), [socket.fileno()])
        finally:
            socket.close()
        if answer.get("number") != str(slot.number):
            raise HostError("the domain changes its devices itself", hint="try again")
        self.slots[slot.number] = slot

    def _forget(self, slot: Slot, backend: Backend) -> None:
        self.slots.pop(slot.number, None)
        if isinstance(backend, Worker) and len(backend.slots) > 1:
            backend.remove(slot)
        else:
            backend.stop()
            self._backends.remove(backend)
        slot.release()

    def remove(self, number: int) -> None:
        """Take a device away from the running domain, once the guest has let it go, or in time."""
        self._ask(lambda: self._ask_back(number))
        deadline = time.monotonic() + LET_GO + 1
        while self._ask(lambda: self._is_used(number)) and time.monotonic() < deadline:
            time.sleep(0.02)
        self._ask(lambda: self._remove(number))

    def _ask_back(self, number: int) -> None:
        self._backend_of(self._slot(number)).unwatch(number)
        self._control(f"device-remove {number} {LET_GO}", [])

    def _is_used(self, number: int) -> bool:
        state = self._control("devices", []).get(f"{number}.state", "removed")
        return state != "removed"

    def _remove(self, number: int) -> None:
        slot = self._slot(number)
        self._forget(slot, self._backend_of(slot))

    def resize(self, number: int, size: int) -> None:
        """Have the guest see a disk's size, of its image as it is, or grown to ``size`` first."""
        self._ask(lambda: self._resize(number, size))

    def _resize(self, number: int, size: int) -> None:
        slot = self._slot(number)
        backend, image = self._backend_of(slot), slot.image
        if image is None:
            raise slot.device.error("has no size to change", "images have")
        if not isinstance(backend, Worker):
            from kvmpv.toolstack.servers import StorageDaemon

            if not isinstance(backend, StorageDaemon) or not size:
                raise slot.device.error("wants the new size", "resize_disk(number, size)")
            backend.resize(size)
            return
        image.measure()
        if size and size != image.size:
            image.grow(slot.device, size)
        backend.ask(f"resize {number}")

    def limit(self, number: int, limits: dict[str, int]) -> None:
        """Set a device's limits: iops, bps and their bursts; 0 takes one away."""
        self._ask(lambda: self._limit(number, limits))

    def _limit(self, number: int, limits: dict[str, int]) -> None:
        words = [f"{key}={value}" for key, value in limits.items()]
        # A group's are those of its first disk that a worker opens: each has to know.
        for slot in self._sharing_limits(self._slot(number)):
            backend = self._backend_of(slot)
            if not isinstance(backend, Worker):
                hint = "start the domain with them"
                raise slot.device.error("its limits cannot be changed", hint)
            slot.set_limits(limits)
            backend.ask(" ".join([f"limit {slot.number}", *words]))

    def _sharing_limits(self, slot: Slot) -> list[Slot]:
        group = slot.device.options.get("group")
        others = list(self.slots.values()) if group else [slot]
        return [one for one in others if one.device.options.get("group") == group]

    def _slot(self, number: int) -> Slot:
        if number not in self.slots:
            known = ", ".join(map(str, sorted(self.slots))) or "none"
            raise BadInput(f"the domain has no device {number}", hint=f"there are: {known}")
        return self.slots[number]

    def _backend_of(self, slot: Slot) -> Backend:
        for backend in self._backends:
            if slot in backend.slots:
                return backend
        raise HostError(f"{slot.device.label} has no backend", hint="start the domain again")

    # ---- what is there

    def stats(self) -> dict[str, str]:
        """Return what all backends count, by name."""
        return self._ask(self._stats)

    def _stats(self) -> dict[str, str]:
        found = {"backend_restarts": str(self._restarts)}
        for backend in self._backends:
            try:
                counted = backend.stats()
            except KvmpvError:
                continue  # it has just died
            for key, value in counted.items():
                head, dot, name = key.partition(".")
                key = f"device{head}_{name}" if dot else f"worker_{key}"
                found[key] = _sum(found[key], value) if key in found else value
        return found

    def describe(self) -> list[dict[str, str]]:
        """Return number, kind, option, backend and its process, if one runs, of each device."""
        return self._ask(self._describe)

    def _describe(self) -> list[dict[str, str]]:
        found = []
        for number, slot in sorted(self.slots.items()):
            backend = self._backend_of(slot)
            facts = {
                "number": str(number),
                "kind": slot.device.kind,
                "option": slot.device.label,
                "backend": backend.what,
                "restarts": str(backend.restarts),
            }
            if backend.pid:  # not while it is being replaced
                facts["pid"] = str(backend.pid)
            if slot.image is not None:
                facts |= {"path": slot.image.path, "format": slot.image.format}
                facts["size"] = str(slot.image.size)
            if slot.device.net is not None:
                facts["mac"] = slot.device.net.mac
            if slot.card is not None:
                facts |= {"tap": slot.card.tap, "address": slot.card.address}
            found.append(facts)
        return found

    def processes(self) -> list[int]:
        """Return the ids of the processes that run now."""
        return self._ask(lambda: [one.pid for one in self._backends if one.pid])

    # ---- the end

    def close(self) -> None:
        """End all backends, and give back what the devices held."""
        if self._ending:
            return
        self._ask(self._close)
        self._ended.acquire()
        os.close(self._wake)
        self._place.close()
        os.close(self._log)

    def _close(self) -> None:
        self._vmm = -1
        for backend in self._backends:
            backend.ask_to_end()
        for backend in self._backends:
            backend.stop()
        for slot in self.slots.values():
            if slot.device.kind == "vsock":
                processes.unlink(slot.device.text)
            slot.release()
        self._backends.clear()
        self._ending = True


def _is_foreign(slot: Slot) -> bool:
    return slot.image is not None and slot.image.format != "raw"


def _is_readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def _sum(one: str, other: str) -> str:
    return str(int(one) + int(other)) if one.isdigit() and other.isdigit() else other


def _check_free(device: Device) -> None:
    """Raise ``BadInput`` where somebody has the path of a socket already."""
    if not os.path.lexists(device.text):
        return
    if not processes.is_stale(device.text):
        raise device.error("something is there already", "give another path, or remove it")
    processes.unlink(device.text)  # of a worker that was killed
