"""What one network card of a domain shall be: the text behind ``--net``, parsed and checked."""

from __future__ import annotations

from kvmpv.errors import BadInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

KINDS: Final = ("nat", "bridge", "tap", "user", "none", "vhost-user")
WITH_TARGET: Final = ("bridge", "tap", "vhost-user")
PROTOCOLS: Final = ("tcp", "udp")
VHOST: Final = ("auto", "on", "off")

MAX_QUEUES: Final = 31  # pairs: a device of the transport has 64 queues, one of them for control
MTU_MIN: Final = 68  # RFC 791
MTU_MIN_IPV6: Final = 1280  # RFC 8200, section 5
MTU_MAX: Final = 65521  # what a tap takes
RATE_MIN: Final = 4096  # bytes a second: less than three full packets are a mistake
RATE_MAX: Final = 1 << 50  # more is a mistake too
IFNAMSIZ: Final = 15
IPV4_ANY: Final = "0.0.0.0"
IPV4_GROUPS: Final = 224  # the first byte of addresses that are nobody's own, from here on
UNITS: Final = {"K": 10, "M": 20, "G": 30, "T": 40}
DIGITS_MAX: Final = 20


class Forward:
    """A port of the host that leads to a port of the guest.

    ``host`` is "" for all addresses, 0.0.0.0 for those of IPv4.
    """

    __slots__ = ("guest_port", "host", "host_port", "protocol")

    def __init__(self, protocol: str, host: str, host_port: int, guest_port: int) -> None:
        self.protocol = protocol
        self.host = host
        self.host_port = host_port
        self.guest_port = guest_port

    def __str__(self) -> str:
        host = f"{self.host}:" if self.host else ""
        return f"{self.protocol}:{host}{self.host_port}:{self.guest_port}"


class NetSpec:
    """One card. Numbers are 0 where the default is meant; rates are bytes and packets a second."""

    __slots__ = (
        *("antispoof", "bps", "bps_burst", "forwards", "kind", "mac", "mtu", "pps", "pps_burst"),
        *("queues", "subnet", "target", "vhost"),
    )

    def __init__(self, kind: str, target: str = "") -> None:
        self.kind = kind
        self.target = target  # of bridge and tap the name, of vhost-user the socket's path
        self.mac = ""
        self.mtu = 0
        self.queues = 1  # pairs
        self.vhost = "auto"
        self.forwards: list[Forward] = []
        self.antispoof = False
        self.bps = self.bps_burst = self.pps = self.pps_burst = 0
        self.subnet = ""  # of nat: the network to use, where it is not to be chosen


def parse(text: str) -> NetSpec:
    """Return what ``nat,mtu=9000`` and the like mean; raise ``BadInput`` for what cannot be."""
    first, *options = text.split(",")
    kind, equals, target = first.partition("=")
    if kind not in KINDS or bool(equals) != (kind in WITH_TARGET):
        hint = "nat, bridge=NAME, tap=NAME, user, none or vhost-user=SOCKET"
        raise BadInput(f"{first!r} is no network", hint=hint)
    if equals and not target:
        raise BadInput(f"--net {kind}= wants a name", hint=f"{kind}=NAME")
    if kind in ("bridge", "tap"):
        check_name(target)
    spec = NetSpec(kind, target)
    for option in options:
        _set(spec, option)
    check(spec)
    return spec


def check(spec: NetSpec) -> None:
    """Raise ``BadInput`` for settings that make no sense together."""
    least = MTU_MIN_IPV6 if spec.kind == "nat" else MTU_MIN
    if spec.mtu and not least <= spec.mtu <= MTU_MAX:
        raise BadInput(f"an MTU of {spec.mtu} is not possible", hint=f"{least} to {MTU_MAX} are")
    if not 1 <= spec.queues <= MAX_QUEUES:
        hint = f"1 to {MAX_QUEUES} are"
        raise BadInput(f"{spec.queues} pairs of queues are not possible", hint=hint)
    if spec.kind != "nat":
        if spec.forwards and spec.kind != "user":
            raise BadInput(f"{spec.kind} forwards no ports", hint="nat and user do")
        if spec.subnet:
            raise BadInput(f"{spec.kind} has no subnet to choose", hint="nat has")
    if spec.antispoof and spec.kind not in ("nat", "bridge"):
        raise BadInput(f"{spec.kind} has no anti-spoofing", hint="nat and bridge=NAME have")
    _check_limits(spec)


def _check_limits(spec: NetSpec) -> None:
    for name, rate, burst in (
        ("bps", spec.bps, spec.bps_burst),
        ("pps", spec.pps, spec.pps_burst),
    ):
        if max(rate, burst) > RATE_MAX:
            hint = f"at most {RATE_MAX}, or leave {name} out"
            raise BadInput(f"{name} cannot be as large as {max(rate, burst)}", hint=hint)
        if burst and not rate:
            raise BadInput(f"{name}_burst without {name} limits nothing", hint=f"add {name}=N")
        if burst and burst < rate // 1000:
            hint = "a burst lasts at least a millisecond of the rate"
            raise BadInput(f"{name}_burst={burst} is too small for {name}={rate}", hint=hint)
    if spec.bps and spec.bps < RATE_MIN:
        hint = f"bytes a second, {RATE_MIN} or more, such as 10M"
        raise BadInput(f"bps={spec.bps} lets nothing through", hint=hint)
    limited = spec.bps or spec.pps
    if limited and spec.vhost == "on":
        raise BadInput("vhost=on cannot be limited", hint="take vhost=on, or bps and pps, away")
    if limited and spec.kind in ("user", "none", "vhost-user"):
        raise BadInput(f"{spec.kind} has no limits", hint="nat, bridge=NAME and tap=NAME have")


def check_name(name: str) -> None:
    """Raise ``BadInput`` for what cannot be the name of an interface of Linux."""
    bad = any(character.isspace() or character in '/:%"\0' for character in name)
    bad = bad or not name.isprintable()  # which bytes that are no UTF-8 are not either
    if bad or name in ("", ".", "..") or len(name.encode()) > IFNAMSIZ:
        hint = f"at most {IFNAMSIZ} characters, no blanks, no '/', ':' or '%'"
        raise BadInput(f"{name!r} is no name of an interface", hint=hint)


def parse_mac(text: str) -> str:
    """Return a MAC address in small letters; raise ``BadInput`` for what no card can have."""
    hint = "write 52:54:00:12:34:56"
    parts = text.lower().split(":")
    if len(parts) != 6 or not all(len(part) == 2 and _is_hex(part) for part in parts):
        raise BadInput(f"{text!r} is no MAC address", hint=hint)
    if int(parts[0], 16) & 1:
        raise BadInput(f"the MAC address {text} is a group's", hint="the first byte must be even")
    if not any(int(part, 16) for part in parts):
        raise BadInput("a MAC address of zeroes is nobody's", hint=hint)
    return ":".join(parts)


def parse_forward(text: str) -> Forward:
    """Return what ``tcp:8080:80`` or ``udp:127.0.0.1:53:53`` means."""
    protocol, _, rest = text.partition(":")
    *host, host_port, guest_port = rest.split(":") if rest.count(":") else ("", "", "")
    if protocol not in PROTOCOLS or len(host) > 1:
        hint = "write tcp:HOSTPORT:GUESTPORT, or udp"
        raise BadInput(f"{text!r} is no port to forward", hint=hint)
    if host and host[0] and not _is_ipv4(host[0]):
        raise BadInput(f"{host[0]!r} is no IPv4 address", hint="tcp:127.0.0.1:8080:80")
    if host and host[0] and int(host[0].split(".")[0]) >= IPV4_GROUPS:
        raise BadInput(f"{host[0]} is no host's address", hint="tcp:127.0.0.1:8080:80")
    ports = []
    for port in (host_port, guest_port):
        if not _is_number(port) or not 1 <= int(port) <= 65535:
            raise BadInput(f"{text!r}: {port!r} is no port", hint="1 to 65535 are")
        ports.append(int(port))
    return Forward(protocol, host[0] if host else "", ports[0], ports[1])


def is_host_name(text: str) -> bool:
    """Tell whether a domain's name can be a host's, and no address (RFC 1123, section 2.1)."""
    plain = text.replace("-", "").replace(".", "")
    return (
        plain.isascii()
        and plain.isalnum()
        and not _is_ipv4(text)
        and all(
            part and len(part) < 64 and part[0] != "-" and part[-1] != "-"
            for part in text.split(".")
        )
    )


def _set(spec: NetSpec, option: str) -> None:
    name, equals, value = option.partition("=")
    if name == "antispoof" and (not equals or value in ("on", "off")):
        spec.antispoof = value != "off"
        return
    setter = SETTERS.get(name)
    if setter is None:
        known = ", ".join([*SETTERS, "antispoof"])
        raise BadInput(f"--net does not know {option!r}", hint=f"it knows {known}")
    if not value:
        raise BadInput(f"{name} of --net wants a value", hint=f"{name}=...")
    setter(spec, value)


def _set_vhost(spec: NetSpec, value: str) -> None:
    if value not in VHOST:
        raise BadInput(f"vhost={value} is unknown", hint="auto, on and off are known")
    spec.vhost = value


def _number(name: str) -> Callable[[NetSpec, str], None]:
    def set_number(spec: NetSpec, value: str) -> None:
        size = name.startswith("bps") and value[-1:].upper() in UNITS
        digits, shift = (value[:-1], UNITS[value[-1].upper()]) if size else (value, 0)
        if not _is_number(digits) or not int(digits):
            raise BadInput(
                f"{name}={value} makes no sense", hint=f"such as {name}={EXAMPLES[name]}"
            )
        setattr(spec, name, int(digits) << shift)

    return set_number


EXAMPLES: Final = {
    "mtu": "9000",
    "queues": "2",
    "bps": "10M",
    "bps_burst": "20M",
    "pps": "10000",
    "pps_burst": "20000",
}
SETTERS: Final[dict[str, Callable[[NetSpec, str], None]]] = {
    "mac": lambda spec, value: setattr(spec, "mac", parse_mac(value)),
    "forward": lambda spec, value: spec.forwards.append(parse_forward(value)),
    "subnet": lambda spec, value: setattr(spec, "subnet", value),
    "vhost": _set_vhost,
    **{name: _number(name) for name in EXAMPLES},
}


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= DIGITS_MAX


def _is_hex(text: str) -> bool:
    return all(character in "0123456789abcdef" for character in text)


def _is_ipv4(text: str) -> bool:
    parts = text.split(".")
    return len(parts) == 4 and all(_is_number(part) and int(part) < 256 for part in parts)
