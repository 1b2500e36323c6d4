"""The host's networks: taps, bridges, NAT, addresses.

Who starts a domain does this, and no more:

    specs = [hostnet.parse("nat,forward=tcp:8080:80"), hostnet.parse("bridge=br0")]
    hostnet.plan("web", specs)           # raises BadInput or HostError; nothing is made
    card = hostnet.attach("web", 0, specs[0])
    card.fds, card.tap, card.mac, card.mtu, card.address
    card.release()                       # or: with hostnet.attach(...) as card

``attach`` is for the kinds ``nat``, ``bridge`` and ``tap``. The descriptors (one for each pair of
queues) are the worker's to inherit and stay open here, so that a worker that died can be started
again; they are non-blocking, and close on exec unless passed on. ``release`` comes after the
worker's end. A caller that is killed leaves nothing that the next ``attach``, or ``sweep``, does
not take away.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpv.hostnet.attachment import Attachment, attach, mac_for, plan, sweep
    from kvmpv.hostnet.spec import Forward, NetSpec, parse

__all__ = ["Attachment", "Forward", "NetSpec", "attach", "mac_for", "parse", "plan", "sweep"]


def __getattr__(name: str) -> object:
    """Import what is asked for when it is: a worker opens taps, and nothing else."""
    if name not in __all__:
        raise AttributeError(name)
    from kvmpv.hostnet import attachment, spec

    return getattr(spec if hasattr(spec, name) else attachment, name)
