"""Collect the handlers into the one table that a vCPU's exit loop looks calls up in.

A handler takes the calling vCPU's index and five arguments, each any 64-bit number that a guest
may put into a register, and returns the result: 0 or more, a negative errno, or None when the
call does not return. It never raises for what a guest has done.
"""

from __future__ import annotations

from kvmpv import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpv.hypercall.events import EventChannels
    from kvmpv.hypercall.ports import Ports
    from kvmpv.hypercall.requests import Requests
    from kvmpv.hypercall.scheduling import Scheduling
    from kvmpv.hypercall.vcpus import Vcpus
    from kvmpv.hypercall.virtio import VirtioTransport

    Handler = Callable[[int, int, int, int, int, int], int | None]


class Version:
    """Version and features: what is on offer, and what the guest said that it uses."""

    __slots__ = ("announced",)

    def __init__(self) -> None:
        self.announced = 0

    def version(self, _cpu: int, *_: int) -> int:
        """KVMPV_HC_VERSION."""
        return abi.VERSION

    def features(self, _cpu: int, features: int, *_: int) -> int:
        """KVMPV_HC_FEATURES."""
        if features & ~abi.FEATURES:
            return -abi.EINVAL
        self.announced = features
        return 0


def handlers(
    version: Version,
    ports: Ports,
    events: EventChannels,
    requests: Requests,
    scheduling: Scheduling,
    vcpus: Vcpus,
    virtio: VirtioTransport | None,
) -> dict[int, Handler]:
    """Return every call of the ABI by its number; without a transport there are no devices."""
    return {
        abi.HC_VERSION: version.version,
        abi.HC_FEATURES: version.features,
        abi.HC_LOG: ports.log,
        abi.HC_PORT_WRITE: ports.write,
        abi.HC_PORT_READ: ports.read,
        abi.HC_PORT_BIND: ports.bind,
        abi.HC_PORT_STATUS: ports.status,
        abi.HC_PORT_CLOSE: ports.close,
        abi.HC_EVTCHN_ALLOC: events.alloc,
        abi.HC_EVTCHN_BIND: events.bind,
        abi.HC_EVTCHN_SEND: events.send_call,
        abi.HC_EVTCHN_CLOSE: events.close,
        abi.HC_REQUESTS_BIND: requests.bind,
        abi.HC_REQUESTS_GET: requests.get,
        abi.HC_POWEROFF: scheduling.poweroff,
        abi.HC_REBOOT: scheduling.reboot,
        abi.HC_CRASH: scheduling.crash,
        abi.HC_YIELD: scheduling.yield_,
        abi.HC_VCPU_UP: vcpus.up,
        abi.HC_VCPU_DOWN: vcpus.down,
        abi.HC_VIRTIO_DEVICES: virtio.devices if virtio else _no_devices,
        abi.HC_VIRTIO_OPEN: virtio.open if virtio else _no_device,
        abi.HC_VIRTIO_STATUS: virtio.status if virtio else _no_device,
        abi.HC_VIRTIO_QUEUE: virtio.queue if virtio else _no_device,
        abi.HC_VIRTIO_CONFIG: virtio.config if virtio else _no_device,
        abi.HC_VIRTIO_BIND: virtio.bind if virtio else _no_device,
        abi.HC_VIRTIO_CLOSE: virtio.close if virtio else _no_device,
    }


def _no_devices(_cpu: int, *_: int) -> int:
    return 0


def _no_device(_cpu: int, *_: int) -> int:
    return -abi.ENOENT
