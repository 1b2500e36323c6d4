"""The front end's side of vhost-user: one call for each request, for a VMM or a test.

All calls wait for the other side no longer than the time-out, and raise ``VhostUserError`` when it
is gone (``gone`` is set then), does not answer, or refuses. Each may come from any thread.
"""

from __future__ import annotations

import _socket
import _thread
import os

from kvmpv.errors import VhostUserError
from kvmpv.vhostuser import message
from kvmpv.vhostuser.connection import Connection, close_all
from kvmpv.vhostuser.message import Message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final

AT_ONCE: Final = 16  # requests of the back end that are served before others get their turn


class Frontend:
    """Speak to the back end at the other end of a connected socket, which this owns."""

    def __init__(self, socket: _socket.socket, timeout: float = 5.0) -> None:
        self.connection = Connection(socket)
        self.timeout = timeout  # in seconds
        self.features = 0
        self.protocol_features = 0
        self._lock = _thread.allocate_lock()

    def fileno(self) -> int:
        """Return the socket's descriptor: it is readable when the back end has gone."""
        return self.connection.fileno()

    def close(self) -> None:
        """Hang up."""
        self.connection.close()

    # ---- requests

    def _tell(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send what has no answer of its own; ask how it went where that is possible."""
        asks = bool(self.protocol_features & message.PF_REPLY_ACK)
        with self._lock:
            flags = message.NEED_REPLY if asks else 0
            self.connection.send(request, flags, payload, fds, self.timeout)
            if not asks:
                return
            got = self._answer(request, 0)
        if message.U64.unpack(_sized(got, message.U64.size))[0]:
            raise VhostUserError(f"the back end refuses request {request}")

    def _ask(self, request: int, payload: bytes = b"", fds: int = 0) -> Message:
        """Send what has an answer of its own, and return that."""
        with self._lock:
            self.connection.send(request, 0, payload, (), self.timeout)
            return self._answer(request, fds)

    def _answer(self, request: int, fds: int) -> Message:
        got = self.connection.wait(self.timeout)
        if got.request == request and got.flags & message.REPLY and len(got.fds) == fds:
            return got
        count = len(got.fds)
        close_all(got.fds)
        raise VhostUserError(
            f"request {request} is answered with {got.request}, flags {got.flags:#x}, "
            f"{count} descriptors"
        )

    def _ask_u64(self, request: int) -> int:
        got = self._ask(request)
        value: int = message.U64.unpack(_sized(got, message.U64.size))[0]
        return value

    # ---- negotiation

    def negotiate(self, protocol_features: int = message.PF_UNASKED) -> None:
        """Take the session, and learn what the back end offers.

        Whoever takes PF_STATUS too has to tell the status: DPDK starts no ring before DRIVER_OK.
        ``features`` is what it offers of virtio's features, vhost-user's own bit included;
        ``protocol_features`` what both sides can do.
        """
        self.features = self.get_features()
        if self.features & message.F_PROTOCOL_FEATURES:
            offered = self.get_protocol_features()
            self.set_protocol_features(offered & protocol_features)
        self.set_owner()

    def get_features(self) -> int:
        """Return the features that the back end offers."""
        return self._ask_u64(message.GET_FEATURES)

    def set_features(self, features: int) -> None:
        """Accept features."""
        self._tell(message.SET_FEATURES, message.U64.pack(features))

    def get_protocol_features(self) -> int:
        """Return the protocol features that the back end offers."""
        return self._ask_u64(message.GET_PROTOCOL_FEATURES)

    def set_protocol_features(self, features: int) -> None:
        """Accept protocol features; those that this side cannot speak are left out."""
        features &= message.PF_KNOWN
        with self._lock:
            payload = message.U64.pack(features)
            self.connection.send(message.SET_PROTOCOL_FEATURES, 0, payload, (), self.timeout)
        self.protocol_features = features

    def set_owner(self) -> None:
        """Begin the session."""
        self._tell(message.SET_OWNER)

    def get_queue_num(self) -> int:
        """Return how many queues the back end can serve; needs PF_MQ."""
        return self._ask_u64(message.GET_QUEUE_NUM)

    def reset_device(self) -> None:
        """Reset the device; only where PF_RESET_DEVICE was negotiated."""
        self._tell(message.RESET_DEVICE)

    def set_status(self, status: int) -> None:
        """Tell the device status; only where PF_STATUS was negotiated."""
        self._tell(message.SET_STATUS, message.U64.pack(status))

    def get_status(self) -> int:
        """Return the device status; only where PF_STATUS was negotiated."""
        return self._ask_u64(message.GET_STATUS)

    # ---- memory

    def set_mem_table(self, regions: Sequence[tuple[int, int, int, int, int]]) -> None:
        """Share memory: regions are ``(gpa, size, user_address, offset, fd)``, 8 at most.

        More are possible where PF_CONFIGURE_MEM_SLOTS was negotiated.
        """
        table = regions[: message.REGIONS_MAX]
        payload = message.TABLE.pack(len(table), 0)
        payload += b"".join(message.REGION.pack(*region[:4]) for region in table)
        self._tell(message.SET_MEM_TABLE, payload, [region[4] for region in table])
        for region in regions[message.REGIONS_MAX :]:
            self.add_mem_region(*region)

    def get_max_mem_slots(self) -> int:
        """Return how many memory regions the back end can take."""
        return self._ask_u64(message.GET_MAX_MEM_SLOTS)

    def add_mem_region(self, gpa: int, size: int, user_address: int, offset: int, fd: int) -> None:
        """Share one more region."""
        payload = message.ONE_REGION.pack(0, gpa, size, user_address, offset)
        self._tell(message.ADD_MEM_REG, payload, [fd])

    def remove_mem_region(self, gpa: int, size: int, user_address: int) -> None:
        """Take a region back."""
        self._tell(message.REM_MEM_REG, message.ONE_REGION.pack(0, gpa, size, user_address, 0))

    def set_log_base(self, fd: int, size: int, offset: int) -> None:
        """Share the dirty log; needs PF_LOG_SHMFD."""
        with self._lock:
            payload = message.LOG.pack(size, offset)
            self.connection.send(message.SET_LOG_BASE, 0, payload, [fd], self.timeout)
            self._answer(message.SET_LOG_BASE, 0)

    def set_log_fd(self, fd: int) -> None:
        """Have an eventfd signalled when the dirty log was written to."""
        self._tell(message.SET_LOG_FD, b"", [fd])

    # ---- rings

    def set_vring_num(self, index: int, num: int) -> None:
        """Set a queue's size in entries."""
        self._tell(message.SET_VRING_NUM, message.STATE.pack(index, num))

    def set_vring_base(self, index: int, base: int) -> None:
        """Set the avail index that the queue goes on from."""
        self._tell(message.SET_VRING_BASE, message.STATE.pack(index, base))

    def get_vring_base(self, index: int) -> int:
        """Stop a queue; return the avail index that it would go on from."""
        got = self._ask(message.GET_VRING_BASE, message.STATE.pack(index, 0))
        ring, base = message.STATE.unpack(_sized(got, message.STATE.size))
        if ring != index:
            raise VhostUserError(f"the back end stops queue {ring} instead of {index}")
        return int(base)

    def set_vring_addr(
        self, index: int, desc: int, used: int, avail: int, flags: int = 0, log: int = 0
    ) -> None:
        """Set where a queue's parts are, as user addresses of the shared memory."""
        payload = message.ADDRESSES.pack(index, flags, desc, used, avail, log)
        self._tell(message.SET_VRING_ADDR, payload)

    def _set_vring_fd(self, request: int, index: int, fd: int) -> None:
        payload = message.U64.pack(index | (message.VRING_NO_FD if fd < 0 else 0))
        self._tell(request, payload, [fd] if fd >= 0 else [])

    def set_vring_kick(self, index: int, fd: int) -> None:
        """Set the eventfd that kicks a queue, -1 to have it polled; the queue starts."""
        self._set_vring_fd(message.SET_VRING_KICK, index, fd)

    def set_vring_call(self, index: int, fd: int) -> None:
        """Set the eventfd that a queue's interrupts come by, -1 for none."""
        self._set_vring_fd(message.SET_VRING_CALL, index, fd)

    def set_vring_err(self, index: int, fd: int) -> None:
        """Set the eventfd that tells of a broken queue, -1 for none."""
        self._set_vring_fd(message.SET_VRING_ERR, index, fd)

    def set_vring_enable(self, index: int, enabled: bool) -> None:
        """Enable or disable a queue."""
        self._tell(message.SET_VRING_ENABLE, message.STATE.pack(index, int(enabled)))

    # ---- config

    def get_config(self, offset: int, size: int) -> bytes:
        """Return a piece of the config space; needs PF_CONFIG."""
        got = self._ask(message.GET_CONFIG, message.CONFIG.pack(offset, size, 0) + bytes(size))
        head = message.CONFIG.size
        if len(got.payload) != head + size:
            raise VhostUserError(f"the back end has no {size} bytes of config at {offset}")
        return got.payload[head:]

    def set_config(self, offset: int, data: bytes) -> None:
        """Write to the config space as a driver does; needs PF_CONFIG."""
        self._tell(message.SET_CONFIG, message.CONFIG.pack(offset, len(data), 0) + data)

    def set_mtu(self, mtu: int) -> None:
        """Tell the MTU that the guest is shown; needs PF_NET_MTU."""
        self._tell(message.NET_SET_MTU, message.U64.pack(mtu))

    # ---- requests in flight

    def get_inflight_fd(self, queues: int, ring_size: int) -> tuple[int, int, int]:
        """Have a log of requests in flight made: return ``(fd, size, offset)``; keep the fd."""
        got = self._ask(message.GET_INFLIGHT_FD, message.INFLIGHT.pack(0, 0, queues, ring_size), 1)
        if len(got.payload) not in (message.INFLIGHT.size, message.INFLIGHT_SHORT.size):
            close_all(got.fds)
            raise VhostUserError(f"an in-flight log described in {len(got.payload)} bytes")
        size, offset, _, _ = message.INFLIGHT_SHORT.unpack_from(got.payload)
        return got.fds[0], size, offset

    def set_inflight_fd(self, fd: int, size: int, offset: int, queues: int, ring_size: int) -> None:
        """Hand the log of requests in flight to the back end, before any queue starts."""
        payload = message.INFLIGHT.pack(size, offset, queues, ring_size)
        self._tell(message.SET_INFLIGHT_FD, payload, [fd])

    # ---- requests of the back end

    def set_backend_req_fd(self, socket: _socket.socket) -> None:
        """Give the back end the other end of a socket pair to send its requests by."""
        self._tell(message.SET_BACKEND_REQ_FD, b"", [socket.fileno()])

    def back_channel(self, config_changed: Callable[[], None]) -> BackChannel:
        """Open the channel for the back end's requests; needs PF_BACKEND_REQ."""
        kind = _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, kind)
        try:
            self.set_backend_req_fd(theirs)
        except VhostUserError:
            ours.close()
            raise
        finally:
            theirs.close()
        return BackChannel(ours, config_changed)


class BackChannel:
    """What a back end asks of its front end: that it look at the config space again."""

    def __init__(self, socket: _socket.socket, config_changed: Callable[[], None]) -> None:
        self.connection = Connection(socket)
        self._config_changed = config_changed

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self.connection.fileno()

    def ready(self) -> bool:
        """Serve what has come; return False when the channel is of no more use."""
        try:
            for _ in range(AT_ONCE):
                got = self.connection.take()
                if got is None:
                    break
                self._serve(got)
        except VhostUserError:
            return False
        return True

    def _serve(self, got: Message) -> None:
        close_all(got.fds)
        known = got.request == message.BACKEND_CONFIG_CHANGE and not got.payload
        if known:
            self._config_changed()
        if got.needs_reply:
            self.connection.send(got.request, message.REPLY, message.U64.pack(int(not known)))

    def close(self) -> None:
        """Hang up."""
        self.connection.close()


def open_connection(path: str, timeout: float = 5.0) -> Frontend:
    """Connect to a back end that listens at a path; raise ``VhostUserError``."""
    socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        socket.connect(os.fspath(path))
    except OSError as error:
        socket.close()
        raise VhostUserError(f"cannot connect to {path}: {error.strerror}") from None
    return Frontend(socket, timeout)


def _sized(got: Message, size: int) -> bytes:
    if len(got.payload) != size:
        raise VhostUserError(f"request {got.request} is answered with {len(got.payload)} bytes")
    return got.payload
