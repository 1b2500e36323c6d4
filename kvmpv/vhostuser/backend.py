"""The back end's side of vhost-user: a session serves one device to one front end.

The front end is hostile: what it sends is checked before a device hears of it. What cannot be is
answered with one ``VhostUserError``, after which the session is only to be closed.
"""

from __future__ import annotations

import _socket
import fcntl
import os

from kvmpv.errors import VhostUserError
from kvmpv.vhostuser import message, shared
from kvmpv.vhostuser.connection import Connection, close_all
from kvmpv.vhostuser.message import Message
from kvmpv.vhostuser.rings import Rings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from kvmpv.vhostuser.device import Device
    from kvmpv.vhostuser.shared import Mapping, MemoryRegion

    Handler = Callable[[Message], tuple[bytes, int] | None]

AT_ONCE: Final = 64  # messages served before others in the same thread get their turn


class Session:
    """Serve ``device`` over a connected socket, which it owns, until the front end hangs up."""

    def __init__(self, socket: _socket.socket, device: Device) -> None:
        self.device = device
        self.connection = Connection(socket)
        self.offered = message.PF_COMMON | device.protocol_features & message.PF_KNOWN
        self.protocol_features = 0
        self.regions: list[MemoryRegion] = []
        self.rings = Rings(device, self.regions)
        self._backend_requests: Connection | None = None
        self._log: Mapping | None = None
        self._log_fd = -1
        self._status = 0
        self._owned = False
        self._handlers = self._table()

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self.connection.fileno()

    # ---- messages

    def ready(self) -> None:
        """Serve what the front end has sent; raise ``VhostUserError`` when the session is over.

        The error has ``gone`` set where the front end has just hung up.
        """
        for _ in range(AT_ONCE):
            got = self.connection.take()
            if got is None:
                return
            try:
                self._serve(got)
            finally:
                close_all(got.fds)

    def _serve(self, got: Message) -> None:
        handler = self._handlers.get(got.request)
        acknowledge = got.needs_reply and self.protocol_features & message.PF_REPLY_ACK
        if got.flags & message.REPLY:
            raise VhostUserError(f"request {got.request} came as a reply")
        if handler is None:
            if not acknowledge:
                raise VhostUserError(f"request {got.request} is not known here")
            self._reply(got.request, message.U64.pack(1))
            return
        try:
            answer = handler(got)
        except Exception:
            if acknowledge:
                self._reply(got.request, message.U64.pack(1))
            raise
        if answer is not None:
            payload, fd = answer
            try:
                self._reply(got.request, payload, [fd] if fd >= 0 else [])
            finally:
                if fd >= 0:
                    os.close(fd)
        elif acknowledge:
            self._reply(got.request, message.U64.pack(0))

    def _reply(self, request: int, payload: bytes, fds: list[int] | None = None) -> None:
        self.connection.send(request, message.REPLY, payload, fds or ())

    def _table(self) -> dict[int, Handler]:
        """Return the handlers by request, with the size and the descriptors that each must have."""
        m, rings = message, self.rings
        u64, state = m.U64.size, m.STATE.size
        return {
            m.GET_FEATURES: _checked(self._get_features, 0),
            m.SET_FEATURES: _checked(self._set_features, u64),
            m.GET_PROTOCOL_FEATURES: _checked(self._get_protocol_features, 0),
            m.SET_PROTOCOL_FEATURES: _checked(self._set_protocol_features, u64),
            m.SET_OWNER: _checked(self._set_owner, 0),
            m.RESET_OWNER: _checked(self._reset_owner, 0),
            m.SET_MEM_TABLE: self._set_mem_table,
            m.ADD_MEM_REG: _checked(self._add_mem_reg, m.ONE_REGION.size, fds=(1,)),
            m.REM_MEM_REG: _checked(self._rem_mem_reg, m.ONE_REGION.size, fds=(0, 1)),
            m.GET_MAX_MEM_SLOTS: _checked(lambda _: _u64(m.SLOTS_MAX), 0),
            m.SET_LOG_BASE: _checked(self._set_log_base, m.LOG.size, fds=(1,)),
            m.SET_LOG_FD: _checked(self._set_log_fd, None, fds=(0, 1)),
            m.SET_VRING_NUM: _checked(rings.set_num, state),
            m.SET_VRING_ADDR: _checked(rings.set_addresses, m.ADDRESSES.size),
            m.SET_VRING_BASE: _checked(rings.set_base, state),
            m.GET_VRING_BASE: _checked(rings.get_base, state),
            m.SET_VRING_KICK: _checked(rings.set_kick, u64, fds=(0, 1)),
            m.SET_VRING_CALL: _checked(rings.set_call, u64, fds=(0, 1)),
            m.SET_VRING_ERR: _checked(rings.set_err, u64, fds=(0, 1)),
            m.SET_VRING_ENABLE: _checked(rings.set_enable, state),
            m.GET_QUEUE_NUM: _checked(lambda _: _u64(self.device.queue_count), 0),
            m.SET_BACKEND_REQ_FD: _checked(self._set_backend_requests, 0, fds=(1,)),
            m.GET_CONFIG: self._get_config,
            m.SET_CONFIG: self._set_config,
            m.GET_INFLIGHT_FD: self._get_inflight,
            m.SET_INFLIGHT_FD: self._set_inflight,
            m.NET_SET_MTU: _checked(self._set_mtu, u64),
            m.RESET_DEVICE: _checked(self._reset_device, 0),
            m.SET_STATUS: _checked(self._set_status, u64),
            m.GET_STATUS: _checked(lambda _: _u64(self._status), 0),
        }

    # ---- features

    def _get_features(self, _got: Message) -> tuple[bytes, int]:
        return _u64(self._features())

    def _features(self) -> int:
        logs = message.F_LOG_ALL if self.offered & message.PF_LOG_SHMFD else 0
        return self.device.features | message.F_PROTOCOL_FEATURES | logs

    def _set_features(self, got: Message) -> None:
        features: int = message.U64.unpack(got.payload)[0]
        if features & ~self._features():
            raise VhostUserError(f"features {features & ~self._features():#x} were not offered")
        virtio = features & ~message.F_PROTOCOL_FEATURES
        self.rings.change_features(virtio)
        if not features & message.F_PROTOCOL_FEATURES:
            self.rings.enable_all()

    def _get_protocol_features(self, _got: Message) -> tuple[bytes, int]:
        return _u64(self.offered)

    def _set_protocol_features(self, got: Message) -> None:
        features: int = message.U64.unpack(got.payload)[0]
        if features & ~self.offered:
            raise VhostUserError(
                f"protocol features {features & ~self.offered:#x} were not offered"
            )
        self.protocol_features = features

    def _need(self, feature: int, what: str) -> None:
        if not self.protocol_features & feature:
            raise VhostUserError(f"{what} was not negotiated")

    # ---- memory

    def _set_mem_table(self, got: Message) -> None:
        payload = got.payload
        if len(payload) < message.TABLE.size:
            raise VhostUserError("a memory table without a head")
        count = message.TABLE.unpack_from(payload)[0]
        if not 1 <= count <= message.REGIONS_MAX or len(got.fds) != count:
            raise VhostUserError(f"a table of {count} regions with {len(got.fds)} descriptors")
        if len(payload) != message.TABLE.size + count * message.REGION.size:
            raise VhostUserError(f"a memory table of {len(payload)} bytes for {count} regions")
        regions: list[MemoryRegion] = []
        try:
            for record in message.REGION.iter_unpack(payload[message.TABLE.size :]):
                self._map(regions, record, got.fds)
        except VhostUserError:
            _close_regions(regions)
            raise
        self._use(regions, self.regions)

    def _map(
        self, regions: list[MemoryRegion], record: tuple[int, int, int, int], fds: list[int]
    ) -> None:
        region = shared.map_region(record, fds[0], unsealed=self.device.unsealed)
        del fds[0]
        if any(region.overlaps(other) for other in regions):
            region.close()
            raise VhostUserError(f"memory regions overlap at {record[0]:#x}")
        regions.append(region)

    def _add_mem_reg(self, got: Message) -> None:
        self._need(message.PF_CONFIGURE_MEM_SLOTS, "ADD_MEM_REG")
        _, gpa, size, user_address, offset = message.ONE_REGION.unpack(got.payload)
        record = gpa, size, user_address, offset
        if self._is_there(record, got.fds[0]):
            return
        if len(self.regions) >= message.SLOTS_MAX:
            raise VhostUserError(f"more than {message.SLOTS_MAX} memory regions")
        regions = list(self.regions)
        self._map(regions, record, got.fds)
        self._use(regions, [])

    def _is_there(self, record: tuple[int, int, int, int], fd: int) -> bool:
        """Count a region that is shared again.

        QEMU before 8 shares, and takes back, each one once for each pair of a card's queues.
        """
        gpa, size, user_address, offset = record
        for one in self.regions:
            same = one.key == (gpa, size, user_address) and one.offset == offset
            if same and os.path.sameopenfile(one.fd, fd):
                one.shares += 1
                return True
        return False

    def _rem_mem_reg(self, got: Message) -> None:
        self._need(message.PF_CONFIGURE_MEM_SLOTS, "REM_MEM_REG")
        _, gpa, size, user_address, _ = message.ONE_REGION.unpack(got.payload)
        gone = [one for one in self.regions if one.key == (gpa, size, user_address)]
        if not gone:
            raise VhostUserError(f"no memory region of {size:#x} bytes at {gpa:#x}")
        gone[0].shares -= 1
        if not gone[0].shares:
            self._use([one for one in self.regions if one not in gone], gone)

    def _use(self, regions: list[MemoryRegion], gone: list[MemoryRegion]) -> None:
        """Give the device other memory; queues that run are stopped meanwhile."""
        gone = list(gone)
        running = self.rings.pause()
        self.regions[:] = regions
        try:
            self.device.set_memory(list(regions))
            self.rings.go_on(running)
        finally:
            _close_regions(gone)

    # ---- the dirty log: kept, and handed to the device

    def _set_log_base(self, got: Message) -> tuple[bytes, int]:
        self._need(message.PF_LOG_SHMFD, "LOG_SHMFD")
        size, offset = message.LOG.unpack(got.payload)
        mapping = shared.map_file(
            "the dirty log", got.fds[0], offset, size, unsealed=self.device.unsealed
        )
        before, self._log = self._log, mapping
        self.device.set_log(mapping.address, size, self._log_fd)
        if before is not None:
            before.release()
        return _u64(0)

    def _set_log_fd(self, got: Message) -> None:
        self._need(message.PF_LOG_SHMFD, "LOG_SHMFD")
        fd = self.rings.eventfd(got)
        before, self._log_fd = self._log_fd, fd
        log = self._log
        self.device.set_log(log.address if log else 0, log.length if log else 0, fd)
        if before >= 0:
            os.close(before)

    # ---- requests in flight

    def _get_inflight(self, got: Message) -> tuple[bytes, int]:
        self._need(message.PF_INFLIGHT_SHMFD, "INFLIGHT_SHMFD")
        _, _, queues, ring_size = _inflight(got, fds=0)
        self._check_inflight(queues, ring_size)
        size = queues * message.inflight_queue_size(ring_size)
        fd = os.memfd_create("kvmpv-inflight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, shared.SEALS | fcntl.F_SEAL_SEAL)
        except OSError:
            os.close(fd)
            raise
        return message.INFLIGHT.pack(size, 0, queues, ring_size), fd

    def _set_inflight(self, got: Message) -> None:
        self._need(message.PF_INFLIGHT_SHMFD, "INFLIGHT_SHMFD")
        size, offset, queues, ring_size = _inflight(got, fds=1)
        self._check_inflight(queues, ring_size)
        if size < queues * message.inflight_queue_size(ring_size):
            raise VhostUserError(f"a log of {size} bytes for {queues} queues of {ring_size}")
        mapping = shared.map_file(
            "the in-flight log", got.fds[0], offset, size, unsealed=self.device.unsealed
        )
        self.rings.use_inflight(mapping, size, queues, ring_size)

    def _check_inflight(self, queues: int, ring_size: int) -> None:
        if not 1 <= queues <= self.device.queue_count:
            raise VhostUserError(f"an in-flight log for {queues} queues")
        if not 1 <= ring_size <= message.RING_MAX or ring_size & (ring_size - 1):
            raise VhostUserError(f"an in-flight log for queues of {ring_size} entries")

    # ---- config

    def _get_config(self, got: Message) -> tuple[bytes, int]:
        self._need(message.PF_CONFIG, "CONFIG")
        offset, size, flags, _ = _config(got)
        data = self.device.config().ljust(message.CONFIG_MAX, b"\0")[offset : offset + size]
        return message.CONFIG.pack(offset, size, flags) + data, -1

    def _set_config(self, got: Message) -> None:
        self._need(message.PF_CONFIG, "CONFIG")
        offset, _, flags, data = _config(got)
        if flags == message.CONFIG_MIGRATION:
            return  # the whole space again, as a migrated guest knew it: it is made anew here
        self.device.set_config(offset, data)

    def _set_mtu(self, got: Message) -> None:
        self._need(message.PF_NET_MTU, "NET_MTU")
        self.device.set_mtu(message.U64.unpack(got.payload)[0])

    def _set_backend_requests(self, got: Message) -> None:
        self._need(message.PF_BACKEND_REQ, "BACKEND_REQ")
        if self._backend_requests is not None:
            self._backend_requests.close()
            self._backend_requests = None
        try:
            socket = _socket.socket(fileno=got.fds[0])
        except OSError:
            raise VhostUserError("the channel for the back end's requests is no socket") from None
        got.fds.clear()
        self._backend_requests = Connection(socket)

    def config_changed(self) -> None:
        """Tell the front end that the config space has changed, if it can be told."""
        channel = self._backend_requests
        if channel is None:
            return
        try:
            channel.send(message.BACKEND_CONFIG_CHANGE, 0)
        except VhostUserError:
            channel.close()
            self._backend_requests = None

    # ---- reset

    def _set_owner(self, _got: Message) -> None:
        """Begin the session; another one may follow on the connection.

        QEMU does so when a device is unplugged and the next one is given the same chardev: it has
        told nothing of the first one's end, and adds its memory once more.
        """
        if self._owned:
            self.rings.reset()
            self._use([], self.regions)
            self.device.reset()
        self._owned = True

    def _reset_owner(self, _got: Message) -> None:
        self.rings.disable_all()

    def _reset_device(self, _got: Message) -> None:
        self._need(message.PF_RESET_DEVICE, "RESET_DEVICE")
        self.rings.reset()
        self.device.reset()

    def _set_status(self, got: Message) -> None:
        self._need(message.PF_STATUS, "STATUS")
        self._status = message.U64.unpack(got.payload)[0] & 0xFF
        if not self._status:
            self.rings.reset()
            self.device.reset()

    # ---- the end

    def close(self) -> None:
        """Stop the queues and give everything back that the front end gave.

        A queue that its device cannot stop may still be served: its memory stays mapped then, and
        its descriptors open, for a hole there would be everybody's end. The error is raised.
        """
        try:
            self.rings.stop_all()
        except Exception:
            self.connection.close()
            raise
        try:
            self.rings.reset()
            self.device.set_log(0, 0, -1)
            self.device.set_memory([])
            self.device.disconnected()
        finally:
            self._give_back()

    def _give_back(self) -> None:
        self.rings.close()
        _close_regions(self.regions)
        if self._log is not None:
            self._log.release()
            self._log = None
        if self._log_fd >= 0:
            os.close(self._log_fd)
            self._log_fd = -1
        if self._backend_requests is not None:
            self._backend_requests.close()
            self._backend_requests = None
        self.connection.close()


def _u64(value: int) -> tuple[bytes, int]:
    return message.U64.pack(value), -1


def _checked(handler: Handler, size: int | None, fds: tuple[int, ...] = (0,)) -> Handler:
    def checked(got: Message) -> tuple[bytes, int] | None:
        if size is not None and len(got.payload) != size:
            raise VhostUserError(f"request {got.request} with {len(got.payload)} bytes, not {size}")
        if len(got.fds) not in fds:
            raise VhostUserError(f"request {got.request} with {len(got.fds)} descriptors")
        return handler(got)

    return checked


def _inflight(got: Message, fds: int) -> tuple[int, int, int, int]:
    if len(got.fds) != fds:
        raise VhostUserError(f"an in-flight log with {len(got.fds)} descriptors")
    for record in (message.INFLIGHT, message.INFLIGHT_SHORT):
        if len(got.payload) == record.size:
            size, offset, queues, ring_size = record.unpack(got.payload)
            return size, offset, queues, ring_size
    raise VhostUserError(f"a description of the in-flight log of {len(got.payload)} bytes")


def _config(got: Message) -> tuple[int, int, int, bytes]:
    if len(got.payload) < message.CONFIG.size or got.fds:
        raise VhostUserError("a message on the config space that is cut off")
    offset, size, flags = message.CONFIG.unpack_from(got.payload)
    data = got.payload[message.CONFIG.size :]
    if len(data) != size or offset + size > message.CONFIG_MAX:
        raise VhostUserError(f"{size} bytes of config space at {offset:#x}")
    return offset, size, flags, data


def _close_regions(regions: list[MemoryRegion]) -> None:
    while regions:
        regions.pop().close()
