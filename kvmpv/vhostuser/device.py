"""What a session asks of a device, and what it gives it to work with."""

from __future__ import annotations

from kvmpv.errors import VhostUserError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpv.vhostuser.shared import MemoryRegion


class Vring:
    """A queue that is to be served. All addresses are this process's own, all of it is checked.

    The descriptors stay the session's. ``call`` is always there (one that nobody reads, if the
    front end polls), and may come to mean another eventfd while the queue runs. ``kick`` is -1 if
    the queue is to be polled. ``err`` is -1, or an eventfd to tell of a queue that its guest broke.
    ``inflight`` is 0, or the address of this queue's part of the log of requests in flight, which
    is as hostile as the rest of the memory, and has an entry for each of ``num`` descriptors.
    """

    __slots__ = (
        "avail",
        "base",
        "call",
        "desc",
        "enabled",
        "err",
        "inflight",
        "kick",
        "log",
        "num",
        "used",
        "used_gpa",
    )

    def __init__(self) -> None:
        self.num = self.base = 0
        self.desc = self.avail = self.used = 0
        self.used_gpa = 0  # what the dirty log has the used ring's writes under
        self.kick = self.call = self.err = -1
        self.inflight = 0
        self.enabled = False
        self.log = False  # writes of the used ring belong in the dirty log


class Device:
    """A device behind a session; each kind of device overrides what it needs.

    All methods are called by the thread that the session is served by. One that raises a
    ``KvmpvError`` ends the session.
    """

    # virtio's feature bits that the device offers, without vhost-user's own
    features = 0
    # which optional parts of vhost-user it can do: PF_CONFIG, PF_INFLIGHT_SHMFD, PF_LOG_SHMFD, ...
    protocol_features = 0
    queue_count = 1
    # whether memory that its owner may truncate is taken: a SIGBUS is the price
    unsealed = False

    def config(self) -> bytes:
        """Return all of the config space, at most 256 bytes."""
        return b""

    def set_config(self, offset: int, data: bytes) -> None:
        """Write to the config space; raise ``VhostUserError`` where that is read-only."""
        raise VhostUserError(f"{len(data)} bytes of config at {offset:#x} are read-only")

    def set_features(self, features: int) -> None:
        """Take the features that the driver accepted, vhost-user's own left out."""

    def set_memory(self, regions: list[MemoryRegion]) -> None:
        """Take the guest's memory; no queue runs. The regions live until the next call."""

    def start_queue(self, index: int, vring: Vring) -> None:
        """Serve a queue from now on, if it is enabled; look at it once without being kicked."""

    def stop_queue(self, index: int) -> int:
        """Finish what is in flight and serve the queue no more; return the next avail index.

        When this returns nothing of the queue is touched any more, its descriptors included.
        """
        return 0

    def set_enabled(self, index: int, enabled: bool) -> None:
        """Let a queue that runs take requests or not."""

    def set_inflight(self, address: int, size: int, queues: int, ring_size: int) -> None:
        """Learn of the log of requests in flight; 0 and 0 when it is there no more."""

    def set_log(self, address: int, size: int, eventfd: int) -> None:
        """Take the dirty log (one bit a page of 4 KiB), or 0 and 0; the eventfd may be -1."""

    def set_mtu(self, mtu: int) -> None:
        """Take the MTU that the guest is shown."""
        raise VhostUserError(f"an MTU of {mtu} cannot be had")

    def reset(self) -> None:
        """Forget the driver: no queue runs, none is enabled, nothing is negotiated."""

    def disconnected(self) -> None:
        """Learn that the front end is gone; no queue runs. Another one may come."""

    def close(self) -> None:
        """End it: the device is not used again."""
