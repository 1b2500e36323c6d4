"""What the VMM knows about each kind of device: its queues, features and config space.

The requests themselves are the backend's. A model says which features a driver is offered, and
serves the config space, from its orders or from what the backend has told.
"""

from __future__ import annotations

from kvmpv.errors import BadInput, VhostUserError
from kvmpv.virtio import spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    Reader = Callable[[int, int], bytes]  # offset and size in the backend's config space

# The transport's own, on offer whatever the backend says. ACCESS_PLATFORM is never shown to it.
TRANSPORT: Final = spec.mask(spec.F_VERSION_1, spec.F_ACCESS_PLATFORM)
# The ring's, if the backend has them. All that is not named here or in a model is not offered.
RING: Final = spec.mask(spec.F_INDIRECT_DESC, spec.F_EVENT_IDX)

REQUEST_RING: Final = 256
NET_RING: Final = 512
CONTROL_RING: Final = 64
QUEUES_MAX: Final = 64  # of one device, as the guest ABI has it

# What becomes of requests in flight when a backend dies without a log of them.
REPLAY: Final = "replay"  # queues are used in order, and one request more or less does no harm
UNKNOWN: Final = "unknown"  # each must be answered for
STATEFUL: Final = "stateful"  # the backend has died with more than its requests


class Model:
    """One kind of device. ``rings`` has the largest ring of each queue."""

    kind = 0
    replay = REPLAY
    features = 0  # on offer if the backend has them too
    own = 0  # on offer because this side serves them
    config_from_backend = 0  # bytes

    def __init__(self, options: dict[str, str]) -> None:
        self.rings = [REQUEST_RING]
        self.config = b""
        self.written: dict[int, bytes] = {}  # by the driver into the backend's config, by offset
        self._parse(options)
        if len(self.rings) > QUEUES_MAX:
            raise BadInput(f"{len(self.rings)} queues: a device has at most {QUEUES_MAX}")

    def _parse(self, options: dict[str, str]) -> None:
        """Take the options of this kind of device."""

    def reset(self) -> None:
        """Forget what the driver has changed."""

    @property
    def backend_queues(self) -> int:
        """How many of the queues are the backend's; they come first."""
        return len(self.rings)

    def offered(self, backend: int) -> int:
        """Return the features that a driver is offered in front of a backend with these."""
        return TRANSPORT | self.own | backend & (self.features | RING)

    def acceptable(self, features: int, offered: int) -> bool:
        """Tell whether a driver may accept these (2.2.1, 2.2.2)."""
        return not features & ~offered and features & TRANSPORT == TRANSPORT

    def for_backend(self, features: int, backend: int) -> int:
        """Return which of the accepted features a backend with these is to be told."""
        return features & backend & ~(1 << spec.F_ACCESS_PLATFORM)

    def queues_needed(self, features: int) -> int:
        """Return how many queues the backend must have, counted as GET_QUEUE_NUM counts."""
        del features
        return self.backend_queues

    def refresh(self, read: Reader) -> bool:
        """Read the config space anew; return whether it changed. Raises VhostUserError."""
        if not self.config_from_backend:
            return False
        config = self._patched(read(0, self.config_from_backend))
        if len(config) != self.config_from_backend:
            raise VhostUserError(f"the backend's config space has {len(config)} bytes")
        changed = config != self.config
        self.config = config
        return changed

    def _patched(self, config: bytes) -> bytes:
        return config

    def handed_over(self, features: int) -> bool:
        """Note that another backend serves a driver with these; return whether config changed."""
        del features
        return False

    def may_write(self, offset: int, length: int, features: int) -> bool:
        """Tell whether a driver that has accepted these features may write this config."""
        del offset, length, features
        return False

    def control_queue(self, features: int) -> int:
        """Return the queue that the VMM serves itself, -1 for none."""
        del features
        return -1


def _number(options: dict[str, str], key: str, standard: int, low: int, high: int) -> int:
    text = options.get(key, str(standard))
    if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
        raise BadInput(f"{key}={text}: {low} to {high} are possible")
    return int(text)


class Block(Model):
    """A disk (5.2): the backend knows it, but the number of queues is ours."""

    kind = spec.BLK
    replay = UNKNOWN
    features = spec.mask(
        *(spec.BLK_F_SIZE_MAX, spec.BLK_F_SEG_MAX, spec.BLK_F_GEOMETRY, spec.BLK_F_RO),
        *(spec.BLK_F_BLK_SIZE, spec.BLK_F_FLUSH, spec.BLK_F_TOPOLOGY, spec.BLK_F_CONFIG_WCE),
        *(spec.BLK_F_MQ, spec.BLK_F_DISCARD, spec.BLK_F_WRITE_ZEROES),
    )
    config_from_backend = spec.BLK_CONFIG.size

    def _parse(self, options: dict[str, str]) -> None:
        self.rings = [REQUEST_RING] * _number(options, "queues", 1, 1, QUEUES_MAX)

    def offered(self, backend: int) -> int:
        """Return the features; several queues only where there are several.

        A switch of the cache that no driver has put to write-through, but that stands there, is not
        shown: qemu-storage-daemon has one, caches nevertheless, and a driver that believed it would
        send no flush (5.2.5.2).
        """
        offered = super().offered(backend)
        at = spec.BLK_CONFIG_WCE_OFFSET
        if at not in self.written and self.config[at : at + 1] == b"\0":
            offered &= ~(1 << spec.BLK_F_CONFIG_WCE)
        return offered if len(self.rings) > 1 else offered & ~(1 << spec.BLK_F_MQ)

    def _patched(self, config: bytes) -> bytes:
        if len(config) < spec.BLK_CONFIG_QUEUES_OFFSET + 2:
            return config
        at = spec.BLK_CONFIG_QUEUES_OFFSET
        return config[:at] + len(self.rings).to_bytes(2, "little") + config[at + 2 :]

    def may_write(self, offset: int, length: int, features: int) -> bool:
        """Tell whether it is the write-back switch, and that was accepted."""
        wanted = offset == spec.BLK_CONFIG_WCE_OFFSET and length == 1
        return wanted and bool(features >> spec.BLK_F_CONFIG_WCE & 1)


class Net(Model):
    """A network (5.1): the VMM serves config and control queue, the backend the packets."""

    kind = spec.NET
    features = spec.mask(
        *(spec.NET_F_CSUM, spec.NET_F_GUEST_CSUM, spec.NET_F_MRG_RXBUF),
        *(spec.NET_F_GUEST_TSO4, spec.NET_F_GUEST_TSO6, spec.NET_F_GUEST_ECN),
        *(spec.NET_F_GUEST_UFO, spec.NET_F_HOST_UFO, spec.NET_F_GUEST_HDRLEN),
        *(spec.NET_F_HOST_TSO4, spec.NET_F_HOST_TSO6, spec.NET_F_HOST_ECN),
        *(spec.NET_F_GUEST_USO4, spec.NET_F_GUEST_USO6, spec.NET_F_HOST_USO),
    )
    # These mean something only to who has the control queue (5.1.3.1).
    needs_control = spec.mask(
        *(spec.NET_F_CTRL_RX, spec.NET_F_CTRL_MAC_ADDR, spec.NET_F_MQ),
        spec.NET_F_GUEST_ANNOUNCE,
    )

    def _parse(self, options: dict[str, str]) -> None:
        self.pairs = _number(options, "queues", 1, 1, (QUEUES_MAX - 1) // 2)
        self.rings = [NET_RING] * (2 * self.pairs) + [CONTROL_RING]
        self.mtu = _number(options, "mtu", 0, 0, 65535)
        self.mac = self.first_mac = _mac(options.get("mac", ""))
        self.status = spec.NET_S_LINK_UP
        own = [spec.NET_F_MAC, spec.NET_F_STATUS, spec.NET_F_CTRL_VQ]
        own += [spec.NET_F_CTRL_RX, spec.NET_F_CTRL_MAC_ADDR, spec.NET_F_GUEST_ANNOUNCE]
        own += [spec.NET_F_MTU] if self.mtu else []
        own += [spec.NET_F_MQ] if self.pairs > 1 else []
        self.own = spec.mask(*own)
        self._pack()

    @property
    def backend_queues(self) -> int:
        """All but the control queue."""
        return 2 * self.pairs

    def _pack(self) -> None:
        self.config = spec.NET_CONFIG.pack(self.mac, self.status, self.pairs, self.mtu)

    def queues_needed(self, features: int) -> int:
        """Return the number of pairs: that is what those count who serve networks."""
        return self.pairs if features >> spec.NET_F_MQ & 1 else 1

    def reset(self) -> None:
        """Return to the address of the orders, with nothing to announce."""
        self.mac = self.first_mac
        self.announced()

    def set_mac(self, mac: bytes) -> None:
        """Take another address from the driver."""
        self.mac = mac
        self._pack()

    def handed_over(self, features: int) -> bool:
        """Have the driver say where it is (5.1.6.5.4): the new backend may not know, as passt."""
        if not features >> spec.NET_F_GUEST_ANNOUNCE & 1:
            return False
        self.status |= spec.NET_S_ANNOUNCE
        self._pack()
        return True

    def announced(self) -> None:
        """Note that the driver has said where it is."""
        self.status &= ~spec.NET_S_ANNOUNCE
        self._pack()

    def acceptable(self, features: int, offered: int) -> bool:
        """Tell whether a driver may accept these: some go only with the control queue."""
        control = features >> spec.NET_F_CTRL_VQ & 1 or not features & self.needs_control
        return bool(control) and super().acceptable(features, offered)

    def control_queue(self, features: int) -> int:
        """Return the control queue: behind the pairs, or the only pair that is used (5.1.2)."""
        if not features >> spec.NET_F_CTRL_VQ & 1:
            return -1
        return 2 * self.pairs if features >> spec.NET_F_MQ & 1 else 2


class Rng(Model):
    """An entropy source (5.4): no features, no config."""

    kind = spec.RNG


class Vsock(Model):
    """A socket device (5.10): its address comes from the backend."""

    kind = spec.VSOCK
    features = spec.mask(spec.VSOCK_F_STREAM, spec.VSOCK_F_SEQPACKET)
    config_from_backend = spec.VSOCK_CONFIG.size

    def _parse(self, _options: dict[str, str]) -> None:
        self.rings = [REQUEST_RING] * 3


class Fs(Model):
    """A folder of the host (5.11): the backend holds what the guest has open."""

    kind = spec.FS
    replay = STATEFUL

    def _parse(self, options: dict[str, str]) -> None:
        queues = _number(options, "queues", 1, 1, QUEUES_MAX - 1)
        tag = options.get("tag", "").encode()
        if not 1 <= len(tag) <= spec.FS_TAG_BYTES:
            raise BadInput(f"a tag of {len(tag)} bytes: 1 to {spec.FS_TAG_BYTES} are possible")
        self.rings = [REQUEST_RING] * (1 + queues)
        self.config = spec.FS_CONFIG.pack(tag, queues)


def _mac(text: str) -> bytes:
    try:
        mac = bytes(int(part, 16) for part in text.split(":"))
    except ValueError:
        mac = b""
    if len(mac) != 6 or mac[0] & 1 or not any(mac):
        raise BadInput(f"mac={text}: no address of one station", hint="as in 52:54:00:12:34:56")
    return mac


MODELS: Final[dict[str, type[Model]]] = {
    "blk": Block,
    "net": Net,
    "rng": Rng,
    "vsock": Vsock,
    "fs": Fs,
}


def model(kind: str, options: dict[str, str]) -> Model:
    """Return the model of a kind of device; raise BadInput for a kind or option that is none."""
    if kind not in MODELS:
        raise BadInput(f"no kind of device is called {kind!r}", hint=" ".join(MODELS))
    return MODELS[kind](options)
