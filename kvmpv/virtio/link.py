"""A device's link to its backend: one vhost-user connection after the other.

Set up as QEMU's docs/interop/vhost-user.rst wants it, and after a backend's death again with the
next one: features, protocol features, memory, the log of requests in flight, rings, and then one
kick by hand, for what the driver queued while nobody was there.
"""

from __future__ import annotations

import _socket
import os
import select

from kvmpv.errors import VhostUserError
from kvmpv.vhostuser import message
from kvmpv.vhostuser.frontend import Frontend
from kvmpv.virtio import spec
from kvmpv.virtio.queue import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final

    from kvmpv.memory import GuestMemory
    from kvmpv.vhostuser.frontend import BackChannel
    from kvmpv.virtio.models import Model
    from kvmpv.virtio.queue import Queue

_USER_FEATURES: Final = 1 << spec.VHOST_USER_F_PROTOCOL_FEATURES

# Seconds that a backend may take to answer: at first, when its process may still be starting; to
# end the requests that it is at; and else. Who takes longer is hung up on, so this is not short.
FIRST_PATIENCE: Final = 60.0
STOP_PATIENCE: Final = 60.0
PATIENCE: Final = 15.0


class Link:
    """The VMM's end, across the backends that serve one device.

    All methods raise VhostUserError when the backend fails or is away. ``config_changed`` is called
    by whoever waits on ``requests`` and calls its ``ready``.
    """

    __slots__ = (
        "_config_changed",
        "_memory",
        "_model",
        "_socket",
        "connections",
        "features",
        "frontend",
        "has_log",
        "inflight",
        "requests",
        "started",
    )

    def __init__(
        self, model: Model, memory: GuestMemory, config_changed: Callable[[], None]
    ) -> None:
        self._model = model
        self._config_changed = config_changed
        self._memory = memory
        self._socket: _socket.socket | None = None
        self.frontend: Frontend | None = None
        self.requests: BackChannel | None = None  # where the backend asks something of us
        self.features = 0  # what the backend has
        self.has_log = False  # of requests in flight
        self.inflight: tuple[int, int, int] | None = None  # that log: fd, size, offset
        self.connections = 0
        self.started = False

    @property
    def connected(self) -> bool:
        """Whether a backend is there."""
        return self.frontend is not None

    def fileno(self) -> int:
        """Return the connection's descriptor, -1 if there is none."""
        return -1 if self._socket is None else self._socket.fileno()

    def hung_up(self) -> bool:
        """Tell whether the backend has closed its end."""
        if self._socket is None:
            return False
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLRDHUP)
        return bool(poll.poll(0))

    # ---- connecting

    def connect(self, socket: _socket.socket) -> None:
        """Take a new backend in place of the old one, and learn what it can do."""
        self.drop()
        self._socket = socket
        self.frontend = Frontend(socket, FIRST_PATIENCE)
        try:
            self._greet(self.frontend)
        except BaseException:
            self.drop()
            raise
        self.connections += 1

    def _greet(self, frontend: Frontend) -> None:
        frontend.negotiate()
        frontend.timeout = PATIENCE
        features, protocol = frontend.features, frontend.protocol_features
        if not features >> spec.F_VERSION_1 & 1:
            raise VhostUserError("the backend knows only legacy virtio")
        if self._model.config_from_backend and not protocol & message.PF_CONFIG:
            raise VhostUserError("the backend has no config space")
        needed = self._model.queues_needed(self._model.offered(features))
        has = frontend.get_queue_num() if protocol & message.PF_MQ else needed
        if has < needed:
            raise VhostUserError(f"the backend has {has} queues, not {needed}")
        self.features = features
        self.has_log = bool(protocol & message.PF_INFLIGHT_SHMFD)
        if protocol & message.PF_BACKEND_REQ:
            self.requests = frontend.back_channel(self._config_changed)

    def cut(self) -> None:
        """Make whoever waits for the backend's answer give up; any thread may call this."""
        try:
            if self._socket is not None:
                self._socket.shutdown(_socket.SHUT_RDWR)
        except OSError:
            return  # it is gone already

    def drop(self) -> None:
        """Hang up. The log of requests in flight is kept for the next backend."""
        if self.frontend is not None:
            self.frontend.close()
        if self.requests is not None:
            self.requests.close()
        self._socket = self.frontend = self.requests = None
        self.started = False

    def _there(self) -> Frontend:
        if self.frontend is None:
            raise VhostUserError("the backend is away", gone=True)
        return self.frontend

    # ---- running

    def start(self, features: int, queues: Sequence[Queue], error_fd: int) -> None:
        """Give the backend everything that it needs to serve the queues, and let it begin."""
        frontend = self._there()
        self.started = True
        accepted = self._model.for_backend(features, self.features)
        frontend.set_features(accepted | self.features & _USER_FEATURES)
        frontend.set_mem_table(
            [(r.gpa, r.size, r.address, r.offset, r.fd) for r in self._memory.regions]
        )
        if self.has_log:
            self._share_log(frontend)
        for queue in queues:
            self.start_queue(queue, error_fd)

    def _share_log(self, frontend: Frontend) -> None:
        """Hand over the log of requests in flight, made by the first backend."""
        count, size = self._model.backend_queues, max(self._model.rings)
        if self.inflight is None:
            self.inflight = frontend.get_inflight_fd(count, size)
        frontend.set_inflight_fd(*self.inflight, count, size)

    def start_queue(self, queue: Queue, error_fd: int) -> None:
        """Set up one ring from where it stands, enable it, and kick it by hand."""
        frontend = self._there()
        frontend.set_vring_num(queue.index, queue.size)
        frontend.set_vring_base(queue.index, queue.base)
        frontend.set_vring_addr(
            queue.index,
            self.user_address(queue.descriptors),
            self.user_address(queue.used),
            self.user_address(queue.available),
        )
        frontend.set_vring_call(queue.index, queue.call)
        frontend.set_vring_err(queue.index, error_fd)
        if not queue.enabled:
            self.enable(queue)  # a ring starts by its kick, and may be enabled from the last time
        frontend.set_vring_kick(queue.index, queue.kick)
        if queue.enabled:
            self.enable(queue)
        queue.live = True
        signal(queue.kick)

    def stop_queue(self, queue: Queue) -> None:
        """Stop one ring; on return the backend touches no memory of it. Keeps its position."""
        frontend = self._there()
        frontend.timeout = STOP_PATIENCE
        queue.base = frontend.get_vring_base(queue.index)
        frontend.timeout = PATIENCE
        queue.live = False

    def forget_log(self) -> None:
        """Forget what was in flight: the driver starts anew."""
        if self.inflight is not None:
            os.close(self.inflight[0])
            self.inflight = None

    def user_address(self, gpa: int) -> int:
        """Return our address of guest memory; the ring's owner has checked that it is RAM."""
        for region in self._memory.regions:
            if region.gpa <= gpa < region.gpa + region.size:
                return region.address + gpa - region.gpa
        raise VhostUserError(f"{gpa:#x} is no guest memory")

    def enable(self, queue: Queue) -> None:
        """Tell the backend whether it is to serve a ring that is set up."""
        if self.features & _USER_FEATURES:
            self._there().set_vring_enable(queue.index, queue.enabled)

    # ---- config

    def read_config(self, offset: int, size: int) -> bytes:
        """Read the backend's config space."""
        return self._there().get_config(offset, size)

    def write_config(self, offset: int, data: bytes) -> None:
        """Write the backend's config space."""
        self._there().set_config(offset, data)
