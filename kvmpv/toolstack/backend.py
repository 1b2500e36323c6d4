"""The processes behind a domain's devices, one class for each kind of process.

Each serves one or more devices over vhost-user. It is started with one end of a socket for each,
and the other end is the VMM's. When it has died it is started again with new sockets.
"""

from __future__ import annotations

import _socket
import errno
import os
import select
import time

from kvmpv.errors import HostError, KvmpvError
from kvmpv.toolstack import processes
from kvmpv.toolstack.devices import LIMIT_MAX
from kvmpv.toolstack.rundir import DEVICE

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Final

    from kvmpv.hostnet.attachment import Attachment
    from kvmpv.toolstack.devices import Device
    from kvmpv.toolstack.disks import Image
else:
    import _signal as signal

OVERLAYS: Final = "/var/tmp"  # on a disk, where /tmp may be memory
QUEUES_DEFAULT_MAX: Final = 4
READY_PATIENCE: Final = 30.0  # seconds; a loaded host may be slow
END_PATIENCE: Final = 2.0
LONG_LIFE: Final = 10.0  # seconds after which a death counts as the first one
LIMITS: Final = ("iops", "iops_burst", "bps", "bps_burst", "pps", "pps_burst")
DELAYS: Final = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Place:
    """What a domain's backends share: its name, its folder, and their log, which is a descriptor.

    ``mark`` is one of a file in the folder, by which a worker is known if the log is elsewhere:
    see rundir.processes_of. ``close`` closes the folder; the others are their owner's.
    """

    __slots__ = ("folder", "log", "mark", "name", "path")

    def __init__(self, name: str, path: str, log: int, mark: int = -1) -> None:
        self.name = name
        self.path = path
        self.folder = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.log = log
        self.mark = mark

    def listener(self, name: str) -> tuple[_socket.socket, _socket.socket]:
        """Return a listening socket and a connection to it: see processes.listener."""
        return processes.listener(self.folder, f"{DEVICE}{name}.sock")

    def close(self) -> None:
        """Close the folder."""
        os.close(self.folder)

    def say(self, text: str) -> None:
        """Write a line to the backends' log."""
        os.write(self.log, f"{text}\n".encode())


class Slot:
    """One device of a domain: its number, and what it holds of the host."""

    __slots__ = ("card", "device", "failures", "image", "number", "overlay", "queues", "reopen_at")

    def __init__(self, number: int, device: Device, vcpus: int) -> None:
        self.number = number
        self.device = device
        self.image: Image | None = None
        self.overlay = -1  # what a throw-away disk's writes go to, from worker to worker
        self.card: Attachment | None = None
        self.queues = _queues(device, vcpus)
        self.failures = 0
        self.reopen_at = 0.0  # when it is to be served again; 0 while it is

    @property
    def fds(self) -> list[int]:
        """The descriptors, but for its socket, that its worker inherits."""
        fds = list(self.card.fds) if self.card is not None else []
        return [*fds, self.overlay] if self.overlay >= 0 else fds

    def make_overlay(self) -> None:
        """Make the file without a name that a throw-away disk is written to."""
        try:
            self.overlay = _unnamed()
        except OSError as error:
            raise HostError(
                f"no throw-away disk in {OVERLAYS}: {error.strerror}", hint="leave snapshot out"
            ) from None

    @property
    def order(self) -> str:
        """What the VMM is told of it, but for number and descriptor."""
        device = self.device
        words = [f"loss={device.options['loss']}"] if "loss" in device.options else []
        if device.kind in ("blk", "net", "fs"):
            words.append(f"queues={self.queues}")
        if device.kind == "fs":
            words.append(f"tag={device.options['tag']}")
        if device.net is not None:
            words.append(f"mac={device.net.mac}")
            mtu = self.card.mtu if self.card is not None else device.net.mtu
            words += [f"mtu={mtu}"] if mtu else []
        return ",".join([device.kind, *words])

    def set_limits(self, limits: dict[str, int]) -> None:
        """Take other limits, which the next worker is told too; raise ``BadInput`` for unknown."""
        options = self.device.options
        for key, value in limits.items():
            if key not in LIMITS or (self.device.net is None and key not in options):
                known = [one for one in LIMITS if self.device.net is not None or one in options]
                raise self.device.error(
                    f"there is no limit {key!r}", f"there are: {', '.join(known)}"
                )
            if type(value) is not int or not 0 <= value <= LIMIT_MAX:
                hint = f"up to {LIMIT_MAX} can, and 0 takes a limit away"
                raise self.device.error(f"{key}={value} cannot be", hint)
        for key, value in limits.items():
            if self.device.net is not None:
                setattr(self.device.net, key, value)
            else:
                options[key] = value

    def note_failure(self) -> None:
        """Set when it is to be served again: soon, and then later and later."""
        self.failures += 1
        self.reopen_at = time.monotonic() + DELAYS[min(self.failures, len(DELAYS) - 1)]

    def release(self) -> None:
        """Give back what it holds."""
        if self.image is not None:
            self.image.close()
            self.image = None
        if self.overlay >= 0:
            os.close(self.overlay)
            self.overlay = -1
        if self.card is not None:
            self.card.release()
            self.card = None


def _queues(device: Device, vcpus: int) -> int:
    if device.net is not None:
        return device.net.queues
    if "queues" not in device.options:
        return 1
    if device.kind == "blk" and device.source != "vhost-user":
        return device.number("queues") or min(vcpus, QUEUES_DEFAULT_MAX)
    return device.number("queues") or 1


def _unnamed() -> int:
    """Return a new file that never has a name, where that can be: nobody need remove it then."""
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        return os.open(OVERLAYS, flags | os.O_TMPFILE, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):  # overlayfs before Linux 6.3
            raise
    path = f"{OVERLAYS}/kvmpv-{os.getpid()}-{os.urandom(4).hex()}"
    made = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    processes.unlink(path)
    return made


class Backend:
    """A process that serves the devices of ``slots``; ``sockets`` are the VMM's ends by number."""

    what = "backend"

    def __init__(self, place: Place, slots: list[Slot]) -> None:
        self.place = place
        self.slots = slots
        self.sockets: dict[int, _socket.socket] = {}
        self.watched: dict[int, _socket.socket] = {}  # the VMM's ends, to see hang-ups by
        self.pid = 0
        self.pidfd = -1
        self.restarts = 0
        self.deaths = 0  # one soon after the other
        self.restart_at = 0.0  # when it is to be started again; 0 while it runs
        self._started_at = 0.0
        self._log_start = 0

    @property
    def label(self) -> str:
        """The process as a message names it."""
        return f"{self.what} of {', '.join(slot.device.label for slot in self.slots)}"

    def start(self) -> None:
        """Start the process; ``sockets`` then has a new end for each device."""
        self._started_at = time.monotonic()
        self._log_start = os.fstat(self.place.log).st_size
        try:
            self._launch()
        except BaseException:
            self._drop_sockets()
            raise
        if self.pid:
            self.pidfd = os.pidfd_open(self.pid)

    def _launch(self) -> None:
        """Start the process and set ``pid`` and ``sockets``."""
        raise NotImplementedError

    def wait_ready(self) -> None:
        """Wait until it serves; raise what it says if it does not."""

    def reopen(self, slot: Slot) -> None:
        """Serve a device again whose session has ended; a process that has one only starts anew.

        In good order: it may have something to write yet.
        """
        self.place.say(f"{slot.device.label}: its session has ended")
        self.ask_to_end()

    def _died(self) -> KvmpvError:
        """Return the error that says why it ended, or hangs, before it was ready."""
        if not ends_within(self.pidfd, END_PATIENCE):
            return HostError(f"{self.label} does not get ready", hint="look at what it was given")
        status = self._reap()
        reason = processes.last_line(self.place.log, self._log_start)
        return HostError(
            f"{self.label} {processes.describe_status(status)}" + (f": {reason}" if reason else ""),
            hint="look at what it was given",
        )

    def take(self) -> dict[int, _socket.socket]:
        """Return the VMM's ends, which are the caller's from now on."""
        taken, self.sockets = self.sockets, {}
        for number, socket in taken.items():
            self.unwatch(number)
            self.watched[number] = _socket.socket(fileno=os.dup(socket.fileno()))
        return taken

    def unwatch(self, number: int) -> None:
        """Look for a hang-up of a device no more."""
        socket = self.watched.pop(number, None)
        if socket is not None:
            socket.close()

    @property
    def due(self) -> float:
        """When something is to be done about it; 0: nothing is."""
        moments = [self.restart_at, *(slot.reopen_at for slot in self.slots)]
        return min([moment for moment in moments if moment], default=0.0)

    def note_hang_ups(self) -> None:
        """See which sessions have ended that should not have."""
        for number, socket in list(self.watched.items()):
            if _has_hung_up(socket):
                self.unwatch(number)
                for slot in self.slots:
                    if slot.number == number and self.pid:
                        self._lost(slot)

    def _lost(self, slot: Slot) -> None:
        """Deal with a session that has ended while the process runs."""
        slot.note_failure()

    def bury(self) -> str:
        """Take note of its death; return why it died, and set when it is to live again."""
        why = processes.describe_status(self._reap())
        reason = processes.last_line(self.place.log, self._log_start)
        self.note_death()
        return f"{self.label} {why}" + (f" ({reason})" if reason else "")

    def note_death(self) -> None:
        """Set when it is to be started again: at once, and then later and later."""
        now = time.monotonic()
        if now - self._started_at > LONG_LIFE:
            self.deaths = 0
        self.restart_at = now + DELAYS[min(self.deaths, len(DELAYS) - 1)] or 1e-9
        self.deaths += 1

    @property
    def restart_delay(self) -> float:
        """Seconds until it is to be started again."""
        return max(self.restart_at - time.monotonic(), 0.0)

    def _reap(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        self._drop()
        return status

    def _drop(self) -> None:
        self.pid = 0
        for number in list(self.watched):
            self.unwatch(number)
        for slot in self.slots:
            slot.reopen_at = 0.0
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
        self._drop_sockets()

    def _drop_sockets(self) -> None:
        for socket in self.sockets.values():
            socket.close()
        self.sockets.clear()

    def signal(self, number: int) -> None:
        """Send the process a signal."""
        if self.pid:
            try:
                signal.pidfd_send_signal(self.pidfd, number)
            except OSError:
                pass  # it has ended

    def ask_to_end(self) -> None:
        """Tell the process to end, and do not wait for that."""
        self.signal(signal.SIGTERM)

    def stop(self) -> None:
        """End the process, however long it takes to be gone."""
        if self.pid:
            self.ask_to_end()
            if not ends_within(self.pidfd, END_PATIENCE):
                self.signal(signal.SIGKILL)
            self._reap()
        self._drop_sockets()

    def stats(self) -> dict[str, str]:
        """Return what it counts, by name."""
        return {}


def _has_hung_up(socket: _socket.socket) -> bool:
    poll = select.poll()
    poll.register(socket, 0)
    return bool(poll.poll(0))


def ends_within(pidfd: int, seconds: float) -> bool:
    """Say whether a process ends within so many seconds."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


class Foreign(Backend):
    """Anybody's backend, which listens on a socket of its own; it is neither started nor ended."""

    what = "vhost-user backend"

    def _launch(self) -> None:
        [slot] = self.slots
        path = slot.device.net.target if slot.device.net is not None else slot.device.text
        socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            socket.connect(path)
        except OSError as error:
            socket.close()
            raise slot.device.error(
                f"nobody serves there: {error.strerror or error}", "start the backend first"
            ) from None
        self.sockets[slot.number] = socket

    def note_hang_ups(self) -> None:
        """See whether it has ended; connect again once there is another one."""
        for number, socket in list(self.watched.items()):
            if _has_hung_up(socket):
                self.place.say(f"{self.label} has hung up")
                self.unwatch(number)
                self.note_death()

    def stop(self) -> None:
        """Leave it alone."""
        self._drop()
