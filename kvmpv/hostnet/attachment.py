"""Cards of domains: checked, attached, released."""

from __future__ import annotations

import os
from _blake2 import blake2s

from kvmpv.errors import BadInput, HostError, KvmpvError
from kvmpv.hostnet import links, tap, users
from kvmpv.hostnet.spec import IPV4_ANY, check, parse_mac

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Sequence
    from typing import Final, Self

    from kvmpv.hostnet.spec import NetSpec

TAP_KINDS: Final = ("nat", "bridge", "tap")
VHOST: Final = "/dev/vhost-net"
MAC_PREFIX: Final = "52:4b"  # locally administered, of one card


def mac_for(domain: str, index: int) -> str:
    """Return the MAC address of a domain's card, the same each time it is asked for."""
    digest = blake2s(f"{domain}/{index}".encode(), digest_size=4).digest()
    return f"{MAC_PREFIX}:{digest.hex(':')}"


def plan(domain: str, specs: Sequence[NetSpec]) -> None:
    """Check all cards of a domain, and give those a MAC that have none; make nothing.

    Raise ``BadInput`` for what the user has to change, ``HostError`` for what the host lacks.
    """
    _require_own_forwards(specs)
    macs: dict[str, int] = {}
    taps: set[str] = set()
    for index, spec in enumerate(specs):
        check(spec)
        spec.mac = parse_mac(spec.mac) if spec.mac else mac_for(domain, index)
        if spec.kind == "none":
            continue
        if macs.setdefault(spec.mac, index) != index:
            hint = "give each card its own, or none"
            raise BadInput(f"the MAC address {spec.mac} is given twice", hint=hint)
        if spec.kind == "tap":
            if spec.target in taps:
                raise BadInput(f"the tap {spec.target} is given twice", hint="take one away")
            taps.add(spec.target)
            tap.require(spec.target, spec.queues)
        elif spec.kind == "bridge":
            links.require_bridge(spec.target)
            tap.require_right()
        elif spec.kind == "nat":
            from kvmpv.hostnet import nat

            nat.require(spec)
        _require_parts(spec)


def _require_parts(spec: NetSpec) -> None:
    if spec.vhost == "on" and spec.kind in TAP_KINDS and not os.access(VHOST, os.R_OK | os.W_OK):
        hint = "modprobe vhost_net, or leave vhost=on out"
        raise HostError(f"this user has no {VHOST}", hint=hint)
    if spec.antispoof:
        from kvmpv.hostnet import filters

        filters.require()


def _require_own_forwards(specs: Sequence[NetSpec]) -> None:
    seen: dict[tuple[str, int], set[str]] = {}
    for spec in specs:
        for forward in spec.forwards:
            hosts = seen.setdefault((forward.protocol, forward.host_port), set())
            everywhere = hosts and not {*hosts, forward.host}.isdisjoint(("", IPV4_ANY))
            if everywhere or forward.host in hosts:
                text = f"{forward.protocol} port {forward.host_port}"
                raise BadInput(f"{text} is forwarded twice", hint="choose another port")
            hosts.add(forward.host)


class Attachment:
    """A card that is attached: its tap's descriptors, name, MAC, MTU, and IPv4 address if known.

    Also a context manager, which releases it at its end.
    """

    __slots__ = ("_ports", "_user", "address", "fds", "mac", "mtu", "spec", "tap")

    def __init__(self, spec: NetSpec, user: users.User) -> None:
        self.spec = spec
        self.fds: list[int] = []
        self.tap = ""
        self.mac = spec.mac
        self.mtu = spec.mtu
        self.address = ""  # of the guest, where it is ours to give
        self._ports: list[_socket.socket] = []  # held, so that nobody else takes a forwarded port
        self._user = user

    def release(self) -> None:
        """Take away what ``attach`` made; a second call does nothing."""
        if self._user.fd < 0:
            return
        with users.Lock() as lock:
            self._undo(lock.path)

    def _undo(self, path: str) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()
        for port in self._ports:
            port.close()
        self._ports.clear()
        users.leave(self._user)
        _sweep(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def attach(domain: str, index: int, spec: NetSpec) -> Attachment:
    """Attach card ``index`` of a domain to its network, and return it with its tap open.

    The network is made if this is its first user. Raise ``BadInput`` or ``HostError`` with nothing
    left behind.
    """
    if spec.kind not in TAP_KINDS:
        raise BadInput(f"{spec.kind} needs no tap", hint="nat, bridge=NAME and tap=NAME do")
    spec.mac = spec.mac or mac_for(domain, index)
    with users.Lock() as lock:
        others = _sweep(lock.path)
        for other in others:
            if (other.domain, other.index) == (domain, index):
                hint = "give each domain its own name"
                raise BadInput(f"the domain {domain} has a card {index} by now", hint=hint)
            if other["mac"] == spec.mac and other["kind"] == spec.kind:
                hint = "choose another, or none"
                raise BadInput(f"the domain {other.domain} has the MAC {spec.mac}", hint=hint)
        values = {
            "kind": spec.kind,
            "target": spec.target,
            "mac": spec.mac,
            "pid": str(os.getpid()),
        }
        user = users.User(domain, index, values)
        users.register(lock.path, user)
        card = Attachment(spec, user)
        try:
            _connect(card, user, lock.path)
            users.register(lock.path, user)
            settle(lock.path, [user])
            _mend(lock.path, others)
        except BaseException:
            try:
                card._undo(lock.path)
            except KvmpvError:
                pass  # what went wrong first is what is said
            raise
    return card


def _connect(card: Attachment, user: users.User, path: str) -> None:
    spec = card.spec
    if spec.kind == "tap":
        card.fds = tap.open_named(spec.target, spec.queues)
        card.tap = spec.target
        usual = links.mtu(card.tap)
        card.mtu = spec.mtu or usual
        if card.mtu > usual:
            user.values |= {"tap": card.tap, "usual": str(usual)}
            users.register(path, user)  # first: who is killed gives it back too
            links.set_mtu(card.tap, card.mtu)
    else:
        bridge = spec.target
        if spec.kind == "nat":
            from kvmpv.hostnet import nat

            network = nat.ensure(path, spec)
            bridge = network.bridge
            card.address = network.address_for(user, path)
            card._ports = nat.hold_ports(spec.forwards)
            user.values["address"] = card.address
            user.values["forwards"] = " ".join(str(forward) for forward in spec.forwards)
        else:
            links.require_bridge(bridge)
        card.tap, card.fds = tap.make(spec.queues)
        _plug(card, bridge)
    user.values["tap"] = card.tap
    if spec.antispoof:
        user.values["antispoof"] = "on"


def _plug(card: Attachment, bridge: str) -> None:
    """Make the tap a port; its own MAC is high, so that the bridge does not take it for its own."""
    links.set_mac(card.tap, "fe" + card.mac[2:])
    links.no_addresses(card.tap)
    usual = links.mtu(bridge)
    card.mtu = card.spec.mtu or usual
    # Never less than the bridge's: that would follow its smallest port, and below 1280 bytes lose
    # its IPv6 addresses for good.
    links.set_mtu(card.tap, max(card.mtu, usual))
    links.add_port(bridge, card.tap)
    links.set_up(card.tap)


def settle(path: str, changed: Sequence[users.User]) -> None:
    """Make rules, addresses and the network itself fit who uses them now, after some changed."""
    if any(user["kind"] == "nat" for user in changed):
        from kvmpv.hostnet import nat

        nat.settle(path)
    for user in changed:
        if user["antispoof"]:
            from kvmpv.hostnet import filters

            if user.fd >= 0:
                filters.watch(user, path)
            else:
                filters.unwatch(user["tap"])
        if user["usual"] and user.fd < 0:
            try:
                links.set_mtu(user["tap"], int(user["usual"]))
            except HostError:
                pass  # it is gone


def _mend(path: str, others: Sequence[users.User]) -> None:
    """Watch those anew whose rules are gone: who replaces all rules of a host takes ours too."""
    watched = [user for user in others if user["antispoof"]]
    if watched:
        from kvmpv.hostnet import filters

        filters.mend(watched, path)


def _sweep(path: str) -> list[users.User]:
    """Take away what those have left who are gone, and then what says so; return the living."""
    alive, dead = users.living(path)
    settle(path, dead)
    users.forget(path, dead)
    return alive


def sweep() -> None:
    """Take away what users that were killed have left; quick where there is nothing."""
    if not os.path.exists(users.folder()):
        return
    with users.Lock() as lock:
        _sweep(lock.path)
