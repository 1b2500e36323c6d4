"""One virtio device of a guest, on the VMM's side: status, features, queues, config, backend.

What is the same for every transport is here. Who owns the device gives it a ``Host``, a transport
makes itself known by ``transport``. All methods but ``connect``, ``remove`` and ``close`` are
called with ``lock`` held, by whoever waits for the backend too: never wait for a vCPU with it.
"""

from __future__ import annotations

import _thread
import os
import select

from kvmpv import abi
from kvmpv.errors import KvmpvError, VhostUserError
from kvmpv.virtio import models, spec
from kvmpv.virtio.link import Link
from kvmpv.virtio.net_control import NetControl
from kvmpv.virtio.queue import Queue, signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable
    from typing import Any, Final, Protocol

    from kvmpv.memory import GuestMemory
    from kvmpv.virtio.models import Model

    class Host(Protocol):
        """What a device asks of the process that it is in; both from any thread."""

        def watch(self, fd: int, ready: Callable[[], None], events: int = ...) -> None:
            """Call ``ready`` whenever these events are on a descriptor."""

        def unwatch(self, fd: int) -> None:
            """Watch a descriptor no more; no error if nobody did."""

        def crash(self, message: str) -> None:
            """End the domain: this device cannot go on, and its user wants that."""

    class Transport(Protocol):
        """What a device asks of its transport, with the device's lock held."""

        def connect(self, device: Device, queues: list[Queue]) -> None:
            """Make the driver's kicks reach ``queue.kick``, and ``queue.call`` the driver."""

        def disconnect(self, device: Device, queues: list[Queue]) -> None:
            """Undo that; the eventfds are about to be closed."""

        def changed(self, device: Device) -> None:
            """Tell the driver that status, config or presence has changed."""


VERSION: Final = 1  # of what state() returns
KNOWN_STATUS: Final = (
    *(spec.ACKNOWLEDGE, spec.DRIVER, spec.DRIVER_OK, spec.FEATURES_OK),
    *(spec.NEEDS_RESET, spec.FAILED),
)
STATUS_MASK: Final = sum(KNOWN_STATUS)
HUNG_UP: Final = select.EPOLLRDHUP


class Device:
    """A device by its number; ``loss`` is "reset" or "crash": see ``_lose``."""

    def __init__(
        self, number: int, model: Model, memory: GuestMemory, host: Host, loss: str = "reset"
    ) -> None:
        self.number = number
        self.model = model
        self.lock = _thread.allocate_lock()
        self.transport: Transport | None = None
        self.link = Link(model, memory, self._note_config_change)
        self.queues = [Queue(index, most) for index, most in enumerate(model.rings)]
        self.status = self.accepted = self.offered = 0
        self.generation = 0  # of the config space
        self.known = False  # a backend has told what it offers
        self.refused = False  # the last backend that came cannot serve this device
        self.leaving = False  # the driver was asked to let it go
        self.removed = False
        self.why = ""  # the backend was lost, for people
        self._memory = memory
        self._host = host
        self._loss = loss
        self._config_is_stale = False
        self._error = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)  # rings that are broken
        self._watched: list[int] = []
        self._control: NetControl | None = None
        # By edges, and never read: a hostile backend could make that block.
        host.watch(self._error, self._ring_is_broken, select.EPOLLIN | select.EPOLLET)

    # ---- what the driver does

    def write_status(self, status: int, features: int) -> int:
        """Take the driver's status (2.1); return 0, -EINVAL, or what ``reset`` returns.

        Bits are added only; the answer is ``status``.
        """
        if status & ~STATUS_MASK:
            return -abi.EINVAL
        if not status:
            return self.reset()
        if self.removed:
            return 0
        before = self.status
        after = before | status & ~spec.NEEDS_RESET
        if after & ~before & spec.FEATURES_OK:
            if self.model.acceptable(features, self.offered):
                self.accepted = features
            else:
                after &= ~spec.FEATURES_OK
        if not after & spec.FEATURES_OK:
            after &= ~spec.DRIVER_OK
        self.status = after
        if after & ~before & spec.DRIVER_OK:
            self._start()
        return 0

    def set_queue(self, index: int, queue: Queue) -> int:
        """Set a queue up as ``queue`` describes it; return 0 or a negative errno."""
        own = self._queue(index)
        if own is None:
            return -abi.ENOENT
        if self.removed:
            return -abi.EIO
        if own.size:
            return -abi.EBUSY
        queue.ring_max = own.ring_max
        if not self.status & spec.FEATURES_OK or not queue.is_ring():
            return -abi.EINVAL
        if not queue.is_in(self._memory):
            return -abi.EFAULT
        own.restore(queue.state())
        try:
            own.open()
        except OSError:
            own.forget()
            return -abi.EIO  # this process has no descriptors left
        if self.status & spec.DRIVER_OK:
            self._begin([own])
        return 0

    def stop_queue(self, index: int) -> int:
        """Stop a queue: on return nobody but its driver touches it; 0 or a negative errno."""
        queue = self._queue(index)
        if queue is None:
            return -abi.ENOENT
        if not queue.size:
            return 0
        return self._release([queue])

    def _queue(self, index: int) -> Queue | None:
        return self.queues[index] if index < len(self.queues) else None

    def write_config(self, offset: int, data: bytes) -> int:
        """Write the config space as the driver does; return 0 or a negative errno."""
        if self.removed:
            return 0
        if not self.model.may_write(offset, len(data), self.accepted):
            return -abi.EINVAL
        try:
            self.link.write_config(offset, data)
            self.model.written[offset] = data
            self._refresh_config()
        except VhostUserError as error:
            self._lose(error)
            return -abi.EIO
        return 0

    def reset(self) -> int:
        """Reset the device (2.4): no queue is set up any more, no memory is used.

        Return 0, or -EAGAIN while requests that a dead backend has left may still be under way: the
        next backend waits for their end.
        """
        if not self.removed and self._owes_requests():
            return -abi.EAGAIN
        result = self._release([queue for queue in self.queues if queue.size])
        if result:
            return result
        self.abandon()
        return 0

    def abandon(self) -> None:
        """Reset the device whatever its backend does: that is cut off if it does not stop."""
        used = [queue for queue in self.queues if queue.size]
        if any(queue.live for queue in used):
            self._drop()
        self._disconnect(used)
        self.link.forget_log()
        self.status = self.accepted = 0
        self.model.reset()

    def _owes_requests(self) -> bool:
        """Tell whether a backend has died with requests that its successor can answer for."""
        away = not self.link.connected and self.link.inflight is not None
        return away and not self._nothing_in_flight()

    def _nothing_in_flight(self) -> bool:
        """Tell whether the backend has given back all that was made available to it."""
        for queue in self.queues:
            if queue.live:
                available, used = queue.indices(self._memory)
                if available != used:
                    return False
        return True

    # ---- queues that run

    def _start(self) -> None:
        """Begin with all queues that are set up."""
        self.link.forget_log()
        self.link.started = False
        for queue in self.queues:
            # Several pairs are served only once the driver asks for them (5.1.6.5.5).
            queue.enabled = self.model.kind != spec.NET or queue.index < 2
        self._begin([queue for queue in self.queues if queue.size])

    def _begin(self, queues: list[Queue]) -> None:
        """Connect queues to the driver, and have them served."""
        try:
            if self.transport is not None:
                self.transport.connect(self, queues)
        except KvmpvError as error:
            self.why = str(error)
            self.needs_reset()
            return
        control = self.model.control_queue(self.accepted)
        for queue in queues:
            if queue.index == control:
                self._start_control(queue)
        self._serve([queue for queue in queues if queue.index != control])

    def _start_control(self, queue: Queue) -> None:
        """Serve a network's control queue here."""
        if isinstance(self.model, models.Net):
            model, memory = self.model, self._memory
            self._control = NetControl(model, memory, queue, self.accepted, self.enable_pairs)
            self._host.watch(queue.kick, self._control_kicked)
            signal(queue.kick)

    def _serve(self, queues: list[Queue]) -> None:
        """Have the backend serve queues. If it is away, the next one is asked."""
        if not self.link.connected or self.status & spec.NEEDS_RESET:
            return
        try:
            if self.link.started:
                for queue in queues:
                    self.link.start_queue(queue, self._error)
            else:
                self.link.start(self.accepted, queues, self._error)
        except VhostUserError as error:
            self._lose(error)

    def _release(self, queues: list[Queue]) -> int:
        """Stop queues and forget them; return 0, or -EAGAIN if the backend has just died."""
        try:
            for queue in queues:
                if queue.live and self.link.connected:
                    self.link.stop_queue(queue)
        except VhostUserError as error:
            self._lose(error)
            if self._owes_requests():
                return -abi.EAGAIN
        self._disconnect(queues)
        return 0

    def _disconnect(self, queues: list[Queue]) -> None:
        if self.transport is not None and queues:
            self.transport.disconnect(self, queues)
        for queue in queues:
            if self._control is not None and self._control.queue is queue:
                self._host.unwatch(queue.kick)
                self._control = None
            queue.forget()

    def enable_pairs(self, pairs: int) -> bool:
        """Have the first pairs of queues served and no others; False if the backend does not."""
        try:
            for queue in self.queues[:-1]:
                queue.enabled = queue.index < 2 * pairs
                if queue.live and self.link.started:
                    self.link.enable(queue)
        except VhostUserError as error:
            self._lose(error)
            return False
        return True

    def call_drivers(self) -> None:
        """Interrupt for each queue: after a pause or a backend's restart none may be missed."""
        for queue in self.queues:
            queue.call_driver()

    # ---- the backend

    def connect(self, socket: _socket.socket) -> bool:
        """Take a new backend, from any thread; return whether it can serve this device."""
        with self.lock:
            if self.removed:
                socket.close()
                return False
            try:
                self._drop()
                self.link.connect(socket)
                self._know()
            except VhostUserError as error:
                self._lose(error)
                return False
            self._watch(self.link.fileno(), self._hung_up, HUNG_UP)
            if self.link.requests is not None:
                self._watch(self.link.requests.fileno(), self._requests_came, select.EPOLLIN)
            self.why, self.refused = "", False
            if self.status & spec.DRIVER_OK:
                self._resume()
            return self.link.connected

    def _know(self) -> None:
        """Learn what the backend offers; one that comes later has to offer as much.

        It is told first what the driver has written into the config space of the one before: a
        driver that put the cache to write-through sends no flush any more.
        """
        for offset, data in self.model.written.items():
            self.link.write_config(offset, data)
        self._refresh_config()  # some of the features are for what stands there
        offered = self.model.offered(self.link.features)
        if not self.known:
            self.offered = offered
        elif self.offered & ~offered:
            lacks = self.offered & ~offered
            raise VhostUserError(f"the backend lacks features {lacks:#x} of the one before")
        self.known = True

    def _resume(self) -> None:
        """Let a new backend go on where the old one died.

        It starts at the used index, as QEMU has it (virtio_queue_restore_last_avail_idx, called
        where GET_VRING_BASE fails), and adds what the log says is in flight.
        """
        control = self.model.control_queue(self.accepted)
        served = [queue for queue in self.queues if queue.size and queue.index != control]
        for queue in served:
            if queue.live:
                queue.base = queue.indices(self._memory)[1]
        forgets = self.link.inflight is not None and not self.link.has_log
        if forgets and not self._nothing_in_flight():
            self._lose(VhostUserError("the backend cannot take over requests in flight"))
            return
        self._serve(served)
        self.call_drivers()
        if self.model.handed_over(self.accepted):
            self.config_changed()

    def _lose(self, error: VhostUserError) -> None:
        """Hang up on a backend that is gone, or that is of no use.

        Its queues wait for the next one, unless that could not know what this one was at.
        """
        self._drop()
        self.why, self.refused = str(error), not error.gone
        if not self.status & spec.DRIVER_OK or self.status & spec.NEEDS_RESET:
            return
        if not any(queue.live for queue in self.queues) or self._can_go_on():
            return
        if self._loss == "crash":
            self._host.crash(f"device {self.number} has lost its backend: {error}")
        self.needs_reset()

    def _can_go_on(self) -> bool:
        if self.model.replay == models.UNKNOWN:
            return self.link.inflight is not None or self._nothing_in_flight()
        return self.model.replay == models.REPLAY

    def _drop(self) -> None:
        for fd in self._watched:
            self._host.unwatch(fd)
        self._watched.clear()
        self.link.drop()

    def _watch(self, fd: int, ready: Callable[[], None], events: int) -> None:
        self._watched.append(fd)
        self._host.watch(fd, ready, events)

    # ---- what the host's thread calls

    def _hung_up(self) -> None:
        with self.lock:
            if self.link.hung_up():
                self._lose(VhostUserError("the backend has hung up", gone=True))

    def _requests_came(self) -> None:
        with self.lock:
            channel = self.link.requests
            if channel is None:
                return
            if not channel.ready():
                self._watched.remove(channel.fileno())
                self._host.unwatch(channel.fileno())
            if self._config_is_stale:
                self._config_is_stale = False
                try:
                    self._refresh_config()
                except VhostUserError as error:
                    self._lose(error)

    def _note_config_change(self) -> None:
        # Looked at only once the backend has its answer: it may wait for that.
        self._config_is_stale = True

    def _control_kicked(self) -> None:
        with self.lock:
            before = self.model.config
            if self._control is not None and not self._control.serve():
                self.why = "its driver has broken the control queue"
                self.needs_reset()
            if before != self.model.config:
                self.config_changed()

    def _ring_is_broken(self) -> None:
        with self.lock:
            self.why = "its driver has broken a ring"
            self.needs_reset()

    # ---- what the driver is told

    def _refresh_config(self) -> None:
        if self.model.refresh(self.link.read_config):
            self.config_changed()

    def config_changed(self) -> None:
        """Tell the driver that the config space is another."""
        self.generation += 1
        self._tell()

    def needs_reset(self) -> None:
        """Tell the driver that the device has stopped until it is reset (2.1.2)."""
        if self.status & spec.DRIVER_OK and not self.status & spec.NEEDS_RESET:
            self.status |= spec.NEEDS_RESET
            self._tell()

    def _tell(self) -> None:
        if self.transport is not None:
            self.transport.changed(self)

    # ---- the end, and what is kept

    def remove(self) -> None:
        """Take the device away from its driver, from any thread."""
        with self.lock:
            if self.removed:
                return
            self.removed = True
            used = [queue for queue in self.queues if queue.size]
            if self._release(used):
                self._disconnect(used)
            self._drop()
            self._tell()

    def close(self) -> None:
        """Give everything back, from any thread; the guest does not run any more."""
        with self.lock:
            self.removed = True
            self._drop()
            self._disconnect([queue for queue in self.queues if queue.size])
            self.link.forget_log()
            if self._error >= 0:
                self._host.unwatch(self._error)
                os.close(self._error)
                self._error = -1

    def pause(self) -> None:
        """Stop the queues where they are; the guest does not run. Raises VhostUserError."""
        for queue in self.queues:
            if queue.live:
                self.link.stop_queue(queue)
        self.link.forget_log()

    def resume(self) -> None:
        """Go on after ``pause`` or ``restore``."""
        control = self.model.control_queue(self.accepted)
        self.link.started = False
        if self.status & spec.DRIVER_OK:
            self._serve([each for each in self.queues if each.size and each.index != control])
            self.call_drivers()

    def state(self) -> dict[str, Any]:
        """Return what ``restore`` takes; the device is paused."""
        return {
            "version": VERSION,
            "status": self.status,
            "accepted": self.accepted,
            "generation": self.generation,
            "config": self.model.config,
            "queues": [queue.state() for queue in self.queues],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Become what ``state`` described, in a device that was never used; then ``resume``."""
        if state["version"] != VERSION:
            raise KvmpvError(f"a device's state of version {state['version']}, not {VERSION}")
        self.status, self.accepted = state["status"], state["accepted"]
        self.generation = state["generation"]
        for queue, saved in zip(self.queues, state["queues"], strict=True):
            queue.restore(saved)
            if queue.size:
                queue.open()
