"""Serve one device to any vhost-user front end, in the foreground: ``kvmpv backend``."""

from __future__ import annotations

import _socket
import os
import select

from kvmpv.errors import BadInput, HostError
from kvmpv.toolstack import devices, disks, processes, rundir, sweeper
from kvmpv.toolstack.backend import Place, Slot
from kvmpv.toolstack.worker import SHARED, Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Final

    from kvmpv.toolstack.devices import Device
else:
    import _signal as signal

STDERR: Final = 2
QUEUES: Final = 4  # front ends take as many as they want of them


class _Listening(Worker):
    """A worker whose front ends come by themselves, one after the other."""

    def __init__(
        self, place: Place, slots: list[Slot], front: _socket.socket, *, unsealed: bool
    ) -> None:
        super().__init__(place, slots, SHARED)
        self._front = front
        self._unsealed = unsealed

    def device_socket(self, slot: Slot) -> tuple[int, str]:
        """Return what the worker is to listen at."""
        return self._front.fileno(), f"listen={self._front.fileno()},unsealed={self._unsealed:d}"


def device(kind: str, spec: str) -> Device:
    """Return the device that ``kvmpv backend KIND SPEC`` means; raise ``BadInput`` if none."""
    if kind == "block":
        found = devices.disk(spec)
    elif kind == "net":
        found = devices.net(spec)
    elif kind == "vsock":
        found = devices.vsock(spec) or devices.Device("vsock", devices.VSOCK.parse(spec))
    else:
        found = devices.rng(spec, True) or devices.Device("rng", devices.RNG.parse("on"))
    if found.source in ("vhost-user", "user", "none"):
        raise found.error("is no device that we serve", "see kvmpv backend --help")
    return found


def serve(made: Device, path: str, *, unsealed: bool = False) -> None:
    """Serve a device at a socket until a signal comes; nothing is left then.

    With ``unsealed``, front ends may share memory that they could truncate. That ends this worker,
    which serves nobody else and is started again.

    Raises BadInput and HostError.
    """
    name = f"backend-{os.getpid()}"
    wake = _follow_signals()
    tidy = sweeper.sweeper(name, [path, made.text] if made.kind == "vsock" else [path])
    try:
        _serve(made, path, name, wake, unsealed=unsealed)
    finally:
        tidy.cancel()


def _serve(made: Device, path: str, name: str, wake: int, *, unsealed: bool) -> None:
    folder = rundir.RunDirectory(name)
    slot = Slot(0, made, QUEUES)
    place: Place | None = None
    front: _socket.socket | None = None
    mark = -1
    try:
        rundir.sweep()
        mark = folder.create("log")
        place = Place(name, folder.path, STDERR, mark)
        _hold(slot, name)
        front = _listen(path)
        worker = _Listening(place, [slot], front, unsealed=unsealed)
        _run(worker, wake, f"{made.label} at {path}")
    finally:
        if front is not None:
            front.close()
            processes.unlink(path)
        slot.release()
        if place is not None:
            place.close()
        if mark >= 0:
            os.close(mark)
        folder.close()


def _hold(slot: Slot, name: str) -> None:
    made = slot.device
    if made.kind == "blk" and made.source in ("path", "id"):
        slot.image = disks.open_image(made, [])
        if slot.image.format != "raw":
            raise made.error(
                f"is {slot.image.format}, which qemu-storage-daemon serves",
                "see its --export vhost-user-blk",
            )
        if made.flag("snapshot"):
            slot.make_overlay()
    if made.net is not None:
        from kvmpv.hostnet.attachment import attach, plan

        plan(name, [made.net])
        slot.card = attach(name, 0, made.net)


def _listen(path: str) -> _socket.socket:
    hint = "give another --socket, or remove it"
    if len(os.fsencode(path)) > rundir.SOCKET_PATH_MAX:
        raise BadInput(f"the path {path} is too long for a socket", hint="give a shorter one")
    front = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        if os.path.lexists(path):
            if not processes.is_stale(path):
                raise BadInput(f"{path} is there already", hint=hint)
            processes.unlink(path)
        try:
            front.bind(path)
        except OSError as error:
            raise BadInput(f"cannot listen at {path}: {error.strerror}", hint=hint) from None
        front.listen(1)
    except BaseException:
        front.close()
        raise
    return front


def _run(worker: Worker, wake: int, what: str) -> None:
    """Keep the worker running until a signal comes."""
    try:
        worker.start()
        worker.wait_ready()
        worker.place.say(f"kvmpv: serving {what}; Ctrl-C ends it")
        while True:
            poll = select.poll()
            poll.register(wake, select.POLLIN)
            poll.register(worker.pidfd, select.POLLIN)
            ready = [fd for fd, _ in poll.poll()]
            if wake in ready:
                return
            worker.place.say(f"kvmpv: {worker.bury()}; it is started again")
            if processes.is_readable(wake, worker.restart_delay):
                return
            worker.start()
            worker.wait_ready()
    finally:
        worker.stop()


def _follow_signals() -> int:
    """Return a descriptor that becomes readable at Ctrl-C and the like."""
    try:
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise HostError(f"cannot make a pipe: {error.strerror}", hint="see ulimit -n") from None
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    return reader
