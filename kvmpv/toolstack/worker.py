"""A worker of our own, as seen from outside: started, told of devices, asked what it counts.

What it takes is in kvmpv/dom0/orders.py and kvmpv/dom0/control.py.
"""

from __future__ import annotations

import _socket
import errno
import os
import select
import struct
import time

from kvmpv.errors import HostError, KvmpvError
from kvmpv.toolstack import processes
from kvmpv.toolstack.backend import END_PATIENCE, READY_PATIENCE, Backend, Place, Slot, ends_within
from kvmpv.toolstack.config import parse_size
from kvmpv.toolstack.specs import escape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

SHARED: Final = "worker"
BLOCK_KEYS: Final = (
    *("readonly", "serial", "cache", "snapshot", "logical", "physical", "discard", "force"),
    *("iops", "iops_burst", "bps", "bps_burst", "group"),
)


class Lines:
    """A connection that takes a line and answers with one, as docs/control.md has it."""

    def __init__(self, socket: _socket.socket) -> None:
        self._socket = socket
        self._received = b""

    def ask(self, line: str, fds: list[int] | None = None) -> dict[str, str]:
        """Return the words of the answer; raise ``KvmpvError`` for a refusal, or a dead peer."""
        ancillary = []
        if fds:
            rights = struct.pack(f"{len(fds)}i", *fds)
            ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)]
        try:
            self._socket.sendmsg([line.encode() + b"\n"], ancillary)
            verdict, _, text = self._receive().partition(" ")
        except OSError as error:
            raise HostError(f"no answer to {line.split()[0]}: {error.strerror}") from None
        if verdict != "ok":
            raise KvmpvError(text or "no answer")
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def _receive(self) -> str:
        deadline = time.monotonic() + READY_PATIENCE
        while b"\n" not in self._received:
            ready, _, _ = select.select([self._socket], [], [], max(deadline - time.monotonic(), 0))
            data = self._socket.recv(65536) if ready else b""
            if not data:
                raise OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line.decode("utf-8", "replace")

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


class Worker(Backend):
    """A worker of our own, kvmpv/dom0, for any number of devices."""

    what = "worker"

    def __init__(self, place: Place, slots: list[Slot], mark: str) -> None:
        super().__init__(place, slots)
        self.shared = mark == SHARED  # by all devices that need none of their own
        self._mark = mark  # what its control socket is told apart by
        self._control: Lines | None = None
        self._lifeline: _socket.socket | None = None
        self._ready = -1
        self._theirs: list[_socket.socket] = []  # until the process has them

    @property
    def label(self) -> str:
        """The process as a message names it."""
        return f"the worker of {self.place.name}"

    def _launch(self) -> None:
        listening, connected = self.place.listener(self._mark)
        lifeline, its_lifeline = processes.pair()
        self._ready, ready = os.pipe2(os.O_CLOEXEC)
        self._control, self._lifeline = Lines(connected), lifeline
        fds = {
            "control": listening.fileno(),
            "lifeline": its_lifeline.fileno(),
            "log": self.place.log,
            "ready": ready,
        }
        words = [f"name={self.place.name}", *(f"{key}={fd}" for key, fd in fds.items())]
        words += ["restart=1"] if self.deaths else []
        inherited = list(fds.values())
        try:
            for slot in self.slots:
                fd, word = self.device_socket(slot)
                inherited += [fd, *slot.fds]
                number, kind = slot.number, slot.device.kind
                words.append(f"device={number},{kind},{word}{worker_words(slot)}")
            argv = processes.python(processes.WORKER, words)
            self.pid = processes.spawn(argv, inherited, self.place.log, stdout=self.place.mark)
        finally:
            for socket in (listening, its_lifeline, *self._theirs):
                socket.close()
            self._theirs.clear()
            os.close(ready)

    def device_socket(self, slot: Slot) -> tuple[int, str]:
        """Return the worker's end of a device's new socket, and how its orders name it."""
        ours, theirs = processes.pair()
        self.sockets[slot.number] = ours
        self._theirs.append(theirs)
        return theirs.fileno(), str(theirs.fileno())

    def wait_ready(self) -> None:
        """Wait until all its devices are open."""
        if self._ready < 0:
            return
        text = b""
        deadline = time.monotonic() + READY_PATIENCE
        while True:
            ready, _, _ = select.select([self._ready], [], [], max(deadline - time.monotonic(), 0))
            data = os.read(self._ready, 4096) if ready else b""
            if not data:
                break
            text += data
        self._close_ready()
        verdict, _, rest = text.decode("utf-8", "replace").strip().partition(" ")
        if verdict == "error":
            number, _, reason = rest.partition(" ")
            self._reap()
            raise self._refused(number, reason)
        if verdict != "ok":
            if ends_within(self.pidfd, END_PATIENCE):
                raise self._died()
            raise HostError(
                f"{self.label} is not ready after {READY_PATIENCE:.0f} s", hint="see top"
            )

    def _refused(self, number: str, reason: str) -> KvmpvError:
        message, _, hint = reason.removesuffix(")").partition(" (")
        for slot in self.slots:
            if str(slot.number) == number:
                return slot.device.error(message, hint or "see docs/devices.md")
        return HostError(message, hint=hint)

    def ask(self, line: str, fds: list[int] | None = None) -> dict[str, str]:
        """Send a line to its control socket; return the words of the answer."""
        if self._control is None:
            raise HostError(f"{self.label} is not there", hint="it is being started again")
        return self._control.ask(line, fds)

    def add(self, slot: Slot) -> None:
        """Serve one more device."""
        ours, theirs = processes.pair()
        try:
            line = f"device-add {slot.number},{slot.device.kind}{worker_words(slot)}"
            self.ask(line, [theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self.slots.append(slot)
        self.sockets[slot.number] = ours

    def remove(self, slot: Slot) -> None:
        """Serve a device no more."""
        self.slots.remove(slot)
        self.ask(f"device-remove {slot.number}")

    def reopen(self, slot: Slot) -> None:
        """Serve a device again that has failed; its socket is new."""
        ours, theirs = processes.pair()
        try:
            self.ask(f"connect {slot.number}", [theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self.sockets[slot.number] = ours
        self.place.say(f"{slot.device.label} is served again")

    def stats(self) -> dict[str, str]:
        """Return what it counts, by name; a device's under its number."""
        return self.ask("stats") if self.pid else {}

    def _close_ready(self) -> None:
        if self._ready >= 0:
            os.close(self._ready)
            self._ready = -1

    def _drop(self) -> None:
        super()._drop()
        self._drop_sockets()

    def _drop_sockets(self) -> None:
        super()._drop_sockets()
        self._close_ready()
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._lifeline is not None:
            self._lifeline.close()
            self._lifeline = None


def worker_words(slot: Slot) -> str:
    """Return what a worker is told of a device, behind its number, kind and descriptor."""
    device, values = slot.device, dict[str, object]()
    if device.kind == "blk":
        values = {key: device.options[key] for key in BLOCK_KEYS}
        values["queues"] = slot.queues
        if slot.image is not None:
            values["path"] = slot.image.path
            values["overlayfd"] = slot.overlay if slot.overlay >= 0 else ""
        else:
            values["null"] = parse_size(device.text)
    elif device.kind == "net":
        values = _net_words(slot)
    elif device.kind == "rng":
        values = {"rate": device.options["rate"]}
    elif device.kind == "vsock":
        values = {"cid": device.options["cid"], "path": os.path.abspath(device.text)}
    given = {key: int(value) if value is True else value for key, value in values.items() if value}
    return "".join(f",{key}={escape(str(value))}" for key, value in given.items())


def _net_words(slot: Slot) -> dict[str, object]:
    card, net = slot.card, slot.device.net
    assert card is not None
    assert net is not None
    return {
        "tap": card.tap,
        "tapfds": ":".join(map(str, card.fds)),
        "mac": card.mac,
        "mtu": card.mtu,
        "queues": net.queues,
        "vhost": net.vhost,
        "bps": net.bps,
        "bps_burst": net.bps_burst,
        "pps": net.pps,
        "pps_burst": net.pps_burst,
    }
