"""A device's place in a worker: its session, its front ends, and its end when it fails.

Whatever a device or its front end does wrong ends here: it is logged in one line, and that device
alone stops.
"""

from __future__ import annotations

import _socket

from kvmpv.errors import HostError, KvmpvError, VhostUserError
from kvmpv.vhostuser.backend import Session
from kvmpv.vhostuser.device import Device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpv.dom0.loop import Loop
    from kvmpv.dom0.orders import DeviceOrders


class ServedDevice(Device):
    """A device in a worker; each kind overrides what it needs of this too.

    ``slot`` is its place, from ``attach`` on: by it a device waits for descriptors, tells that its
    config space has changed, logs, and fails.
    """

    slot: Slot

    def attach(self, slot: Slot) -> None:
        """Take the place; called once, before any front end is there."""
        self.slot = slot

    def stats(self) -> dict[str, int]:
        """Return what is counted about the device, by name."""
        return {}

    def resize(self) -> bool:
        """Look how large what is behind the device is now; return whether that has changed."""
        return False

    def limit(self, limits: dict[str, str]) -> None:
        """Set other limits; raise ``BadInput`` for what is none."""


class Slot:
    """One device of a worker, across its front ends."""

    def __init__(
        self,
        orders: DeviceOrders,
        make: Callable[[dict[str, str]], Device],
        loop: Loop,
        log: Callable[[str], None],
    ) -> None:
        self.number = orders.number
        self.kind = orders.kind
        self.loop = loop
        self._options = orders.options
        self._make = make
        self._log = log
        self._listener: _socket.socket | None = None
        self.session: Session | None = None
        self.device: Device | None = None
        self.sessions = 0
        self.failures = 0
        self._calls: dict[Callable[[], None], Callable[..., None]] = {}
        self._fd = -1  # of the session's socket
        self._listening = False

    @property
    def state(self) -> str:
        """One word: connected, waiting for a front end, or failed."""
        if self.session is not None:
            return "connected"
        return "failed" if self.device is None else "waiting"

    # ---- beginning

    def open(self) -> None:
        """Make the device; raise ``KvmpvError`` when that cannot be."""
        try:
            device = self._make(self._options)
        except OSError as error:
            raise HostError(f"{error.filename or self.kind}: {error.strerror}") from None
        device.unsealed = self._options.get("unsealed", "0") not in ("", "0")
        self.device = device
        if isinstance(device, ServedDevice):
            device.attach(self)

    def connect(self, socket: _socket.socket) -> None:
        """Serve the device to a front end, in place of the one that it had."""
        self.disconnect()
        if self.device is None:
            self.open()
        assert self.device is not None
        self.session = Session(socket, self.device)
        self._fd = self.session.fileno()
        self.sessions += 1
        self.loop.watch(self._fd, self._ready)

    def listen(self, socket: _socket.socket) -> None:
        """Serve the device to those who connect to a socket, one after the other."""
        socket.setblocking(False)
        self._listener = socket
        self._listen(True)

    def _listen(self, on: bool) -> None:
        if self._listener is None or on == self._listening:
            return
        self._listening = on
        if on:
            self.loop.watch(self._listener.fileno(), self._accept)
        else:
            self.loop.unwatch(self._listener.fileno())

    def _accept(self, _events: int) -> None:
        assert self._listener is not None
        try:
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]
        except OSError:
            return
        # The next one waits until this one has gone.
        self._listen(False)
        socket = _socket.socket(fileno=fd)
        try:
            self.connect(socket)
        except KvmpvError as error:
            socket.close()
            self.fail(str(error))

    # ---- what goes on

    def _ready(self, _events: int) -> None:
        session = self.session
        if session is None:
            return
        try:
            session.ready()
        except VhostUserError as error:
            if error.gone:
                self.disconnect()
            else:
                self.fail(f"its front end: {error}")
        except KvmpvError as error:
            self.fail(str(error))
        except Exception as error:  # a bug in one device is not the others' end
            self.fail(f"bug: {error!r}")

    def watch(self, fd: int, ready: Callable[[], None]) -> None:
        """Call ``ready`` whenever ``fd`` is readable; what it raises ends this device alone."""
        self.loop.watch(fd, self.guarded(lambda _: ready()))

    def watch_events(self, fd: int, ready: Callable[[int], None], events: int) -> None:
        """Call ``ready`` with the events whenever ``fd`` has one of them, or is hung up."""
        self.loop.watch(fd, self.guarded(ready), events)

    def guarded(self, action: Callable[..., None]) -> Callable[..., None]:
        """Return a call of ``action`` whose errors end this device alone."""

        def call(*given: int) -> None:
            try:
                action(*given)
            except KvmpvError as error:
                self.fail(str(error))
            except Exception as error:
                self.fail(f"bug: {error!r}")

        return call

    def unwatch(self, fd: int) -> None:
        """Watch a descriptor no more."""
        self.loop.unwatch(fd)

    def call_at(self, moment_ns: int, action: Callable[[], None]) -> None:
        """Call ``action`` at a moment of the monotonic clock; a later call moves that."""
        call = self._calls.setdefault(action, self.guarded(action))
        self.loop.call_at(moment_ns, call)

    def forget(self, action: Callable[[], None]) -> None:
        """Do not make a call that ``call_at`` was asked for."""
        call = self._calls.pop(action, None)
        if call is not None:
            self.loop.forget(call)

    def log(self, text: str) -> None:
        """Write a line about this device to the worker's log."""
        self._log(f"device {self.number} ({self.kind}): {text}")

    def config_changed(self) -> None:
        """Tell the front end that the config space has changed."""
        if self.session is not None:
            self.session.config_changed()

    # ---- ends

    def disconnect(self) -> None:
        """Let go of the front end; the device waits for the next one."""
        session, self.session = self.session, None
        if session is None:
            return
        self.loop.unwatch(self._fd)
        try:
            session.close()
        except Exception as error:
            self._lose(f"it cannot be stopped: {error!r}")
        self._listen(True)

    def fail(self, text: str) -> None:
        """End the device; say why in the log."""
        self.failures += 1
        self.log(text)
        self.disconnect()
        self._lose("")
        self._listen(True)

    def _lose(self, text: str) -> None:
        device, self.device = self.device, None
        if text:
            self.log(text)
        if device is not None:
            try:
                device.close()
            except Exception as error:
                self.log(f"it cannot be closed: {error!r}")

    def close(self) -> None:
        """End the device in good order."""
        self._listen(False)
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        self.disconnect()
        self._lose("")
