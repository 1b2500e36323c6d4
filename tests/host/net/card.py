"""A guest's network card under test: a driver's rings, a session in a thread, a tap."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from kvmpv.dom0.net import NetDevice
from kvmpv.errors import VhostUserError
from kvmpv.hostnet import links, tap
from kvmpv.vhostuser import message
from kvmpv.vhostuser.backend import Session
from kvmpv.vhostuser.frontend import Frontend
from kvmpv.virtio import spec
from tests.unit.vhostuser.driver import DriverRing, Memory, readable
from tests.unit.vhostuser.peer import pair, raw

if TYPE_CHECKING:
    from typing import Self

    from tests.host.net.namespace import Namespace

HEADER = 12
BUFFER = 1536
FEATURES = spec.mask(spec.F_VERSION_1, spec.F_EVENT_IDX, spec.F_INDIRECT_DESC)
MERGEABLE = FEATURES | spec.mask(spec.NET_F_MRG_RXBUF)
OFFLOADS = MERGEABLE | spec.mask(
    *(spec.NET_F_CSUM, spec.NET_F_GUEST_CSUM, spec.NET_F_GUEST_TSO4, spec.NET_F_HOST_TSO4)
)


def make_tap(namespace: Namespace, queues: int = 1) -> tuple[str, list[int]]:
    """Make a tap in a namespace, switched on."""
    name, fds = namespace.call(tap.make, queues)
    namespace.call(links.no_addresses, name)
    namespace.call(links.set_up, name)
    return name, fds


class Served:
    """A device behind a session that a thread serves, as the worker's loop does."""

    def __init__(self, device: NetDevice) -> None:
        self.device = device
        self.error: VhostUserError | None = None
        ours, theirs = pair()
        self.session = Session(raw(theirs), device)
        self.frontend = Frontend(raw(ours))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        try:
            while readable(self.session.fileno(), 30):
                self.session.ready()
        except VhostUserError as error:
            self.error = error
        self.session.close()

    def close(self) -> None:
        self.frontend.close()
        self._thread.join(10)


class Ring(DriverRing):
    """A ring whose driver asks for signals by index (EVENT_IDX)."""

    def wait(self, seconds: float = 5) -> tuple[int, int]:
        """Wait for the next chain that comes back."""
        while (found := self.take_used()) is None:
            self.ask_for_signal()
            if self.used_index == self.seen:
                assert readable(self.call, seconds), "no answer"
                os.eventfd_read(self.call)
        return found

    def ask_for_signal(self) -> None:
        """Set used_event: a signal for the next chain, please (2.7.7)."""
        self.memory.put16(self.avail + 4 + 2 * self.size, self.seen)


class Card:
    """The driver's side: rings of a card, with buffers to receive into."""

    def __init__(
        self,
        frontend: Frontend,
        *,
        features: int = MERGEABLE,
        pairs: int = 1,
        buffers: int = 64,
        size: int = BUFFER,
        ring: int = 128,
        memory: Memory | None = None,
        inflight: bool = False,
    ) -> None:
        self.frontend = frontend
        self.memory = memory or Memory(32 << 20)
        frontend.negotiate()
        self.accepted = frontend.features & (features | message.F_PROTOCOL_FEATURES)
        frontend.set_features(self.accepted)
        frontend.set_mem_table(self.memory.table())
        if inflight:
            fd, length, offset = frontend.get_inflight_fd(2 * pairs, ring)
            frontend.set_inflight_fd(fd, length, offset, 2 * pairs, ring)
            os.close(fd)
        self.rings = [Ring(self.memory, ring) for _ in range(2 * pairs)]
        self.buffers: dict[int, tuple[int, int]] = {}
        for receive in self.rings[::2]:
            for _ in range(buffers):
                self.post(receive, self.memory.take(size), size)
        for index, one in enumerate(self.rings):
            one.give_to(frontend, index)

    def post(self, ring: DriverRing, at: int, size: int) -> None:
        """Offer a buffer to receive into."""
        self.buffers[ring.post((at, size, True))] = (at, size)

    def send(self, frame: bytes, header: bytes = bytes(HEADER), pair: int = 0) -> None:
        """Send a frame, and wait until the device is done with it."""
        self.offer(frame, header, pair)
        self.rings[2 * pair + 1].wait()

    def offer(self, frame: bytes, header: bytes = bytes(HEADER), pair: int = 0) -> None:
        """Send a frame and do not wait."""
        data = header + frame
        self.rings[2 * pair + 1].post((self.memory.put(data), len(data), False))

    def receive(self, pair: int = 0, *, again: bool = True) -> tuple[bytes, bytes, int]:
        """Wait for a frame: its header, itself, and how many buffers it took."""
        ring = self.rings[2 * pair]
        data = b""
        buffers, count = 1, 0
        while count < buffers:
            head, written = ring.wait()
            at, size = self.buffers.pop(head)
            data += self.memory.map[at : at + written]
            if not count:
                buffers = int.from_bytes(data[10:12], "little")
            count += 1
            if again:
                self.post(ring, at, size)
        return data[:HEADER], data[HEADER:], count

    def close(self) -> None:
        self.frontend.close()
        for ring in self.rings:
            ring.close()
        self.memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def frame(payload: bytes, ethertype: bytes = b"\x88\xb5") -> bytes:
    """Return an Ethernet frame for an experiment, to everybody."""
    return b"\xff" * 6 + bytes.fromhex("524b00000001") + ethertype + payload
