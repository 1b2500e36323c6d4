"""A domain's devices as they are to be: what the options say, parsed and checked by themselves.

What takes a look at the host (is the image there, is it free) is kvmpv/toolstack/disks.py's.
docs/devices.md has every option.
"""

from __future__ import annotations

import os

from kvmpv.abi import MAX_DEVICES
from kvmpv.errors import BadInput
from kvmpv.toolstack.specs import Field, Grammar, Spec, split

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

    from kvmpv.hostnet.spec import NetSpec
    from kvmpv.toolstack.config import DomainConfig

SECTOR: Final = 512
QUEUES_MAX: Final = 16
LIMIT_MAX: Final = 10**15  # a second: as much as qemu-storage-daemon takes
DISK_MAX: Final = 1 << 62  # bytes
SERIAL_MAX: Final = 20  # bytes, virtio 1.2, 5.2.6.1
TAG_MAX: Final = 36  # bytes, virtio 1.2, 5.11.4
CID_FIRST: Final = 3  # 0 to 2 have meanings, virtio 1.2, 5.10.4
CID_MAX: Final = (1 << 32) - 2
FORMATS: Final = ("auto", "raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vhdx", "vpc")
ROOT_TAG: Final = "root"

ISOLATE: Final = Field("flag", False)
LOSS: Final = Field(("reset", "crash"), "reset")

DISK: Final = Grammar(
    "--disk",
    "path",
    {"null": ":", "vhost-user": "=", "id": "=", "path": "="},
    {
        "format": Field(FORMATS, "auto"),
        "readonly": Field("flag", False),
        "serial": Field("word", "", most=SERIAL_MAX),
        "cache": Field(("none", "writeback", "unsafe"), ""),
        "snapshot": Field("flag", False),
        "queues": Field("int", 0, least=1, most=QUEUES_MAX),
        "logical": Field("int", 0, least=SECTOR, most=65536),
        "physical": Field("int", 0, least=SECTOR, most=65536),
        "discard": Field(("on", "off"), ""),
        "iops": Field("int", 0, least=1, most=LIMIT_MAX),
        "iops_burst": Field("int", 0, least=1, most=LIMIT_MAX),
        "bps": Field("size", 0, least=1, most=LIMIT_MAX),
        "bps_burst": Field("size", 0, least=1, most=LIMIT_MAX),
        "group": Field("word", "", most=64),
        "force": Field("flag", False),
        "loss": LOSS,
        "isolate": ISOLATE,
    },
    "disk.img,readonly",
)
NET: Final = Grammar(  # what is not here is kvmpv/hostnet/spec.py's
    "--net", "text", {}, {"loss": LOSS, "isolate": ISOLATE}, "nat or bridge=br0"
)
SHARE: Final = Grammar(
    "--share",
    "path",
    {"path": "="},
    {
        "tag": Field("word", "", most=TAG_MAX),
        "ro": Field("flag", False),
        "queues": Field("int", 1, least=1, most=QUEUES_MAX),
        "loss": LOSS,
    },
    "folder,tag=src,ro",
)
ROOT: Final = Grammar("--root", "path", {"path": "="}, {"ro": Field("flag", False)}, "folder")
VSOCK: Final = Grammar(
    "--vsock",
    "path",
    {"path": "="},
    {
        "cid": Field("int", CID_FIRST, least=CID_FIRST, most=CID_MAX),
        "isolate": ISOLATE,
    },
    "/run/guest.vsock",
)
RNG: Final = Grammar(
    "--rng",
    "",
    {"on": "", "off": "", "rate": "="},
    {"isolate": ISOLATE},
    "on or --rng rate=1M",
)


class Device:
    """One device: its virtio kind, where it comes from, and its options by key."""

    __slots__ = ("kind", "net", "options", "source", "spec", "text")

    def __init__(self, kind: str, spec: Spec) -> None:
        self.kind = kind  # as the VMM and the worker name it
        self.spec = spec
        self.source = spec.kind
        self.text = spec.text
        self.net: NetSpec | None = None
        self.options = {key: spec.get(key) for key in spec.grammar.fields}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self._facts() == other._facts()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Device({self.kind}: {self.spec.label})"

    def _facts(self) -> tuple[object, ...]:
        return self.kind, self.source, self.text, self.options

    def text_of(self, key: str) -> str:
        """Return a value as text; the empty one where there is none."""
        return str(self.options[key] or "")

    def number(self, key: str) -> int:
        """Return a number, 0 where none was given."""
        value = self.options[key]
        return value if isinstance(value, int) else 0

    def flag(self, key: str) -> bool:
        """Return whether a flag was given; False where this kind of device has none such."""
        return self.options.get(key) is True

    @property
    def label(self) -> str:
        """The option as a message names it."""
        return self.spec.label

    def error(self, what: str, hint: str) -> BadInput:
        """Return the error that names this device."""
        return self.spec.error(what, hint)


def disk(given: object) -> Device:
    """Return the disk that ``--disk`` means; raise ``BadInput`` for what cannot be."""
    device = Device("blk", DISK.parse(given))
    _check_blocks(device)
    _check_limits(device, (("iops", "iops_burst"), ("bps", "bps_burst")))
    if device.source == "null":
        size = _size(device)
        if not 0 < size <= DISK_MAX or size % SECTOR:
            raise device.error("no size of a disk", f"a multiple of {SECTOR} is: null:1G")
    if device.source == "vhost-user":
        _refuse(device, set(DISK.fields) - {"loss", "queues"}, "that is its backend's to say")
    if device.options["group"] and device.flag("isolate"):
        raise device.error(
            "isolate and group exclude each other", "disks of a group share a worker"
        )
    return device


def net(given: object) -> Device:
    """Return the network card that ``--net`` means; raise ``BadInput`` for what cannot be."""
    from kvmpv.hostnet import spec as hostnet

    words = _net_words(given)
    own = [word for word in words[1:] if word.partition("=")[0] in NET.fields]
    text = ",".join(word for word in words if word not in own)
    device = Device("net", NET.parse(",".join(["net", *own])))
    device.text = device.spec.text = text
    device.net = hostnet.parse(text)
    device.source = device.net.kind
    return device


def _net_words(given: object) -> list[str]:
    """Return a card's kind and options, from a text or from a table of a file."""
    if isinstance(given, str):
        return split(given)
    if not isinstance(given, dict):
        raise BadInput(f"--net wants a text or a table, not {given!r}", hint=NET.example)
    table = dict(given)
    kinds = [name for name in ("bridge", "tap", "vhost-user") if name in table]
    if "kind" in table:
        head = str(table.pop("kind"))
    elif len(kinds) == 1:
        head = f"{kinds[0]}={table.pop(kinds[0])}"
    else:
        raise BadInput("--net: a table names one kind of network", hint='such as kind = "nat"')
    words = [head]
    for key, value in table.items():
        for one in value if isinstance(value, list) else [value]:
            text = ("on" if one else "off") if isinstance(one, bool) else str(one)
            words.append(f"{key}={text}")
    return words


def share(given: object) -> Device:
    """Return the folder that ``--share`` means."""
    device = Device("fs", SHARE.parse(given))
    device.options["tag"] = device.options["tag"] or _tag(device)
    return device


def root(text: str) -> Device | None:
    """Return the folder that ``--root`` means as a device; None for a disk, or for nothing."""
    if not text or root_disk(text):
        return None
    spec = ROOT.parse(text)
    device = Device("fs", spec)
    device.options |= {"tag": ROOT_TAG, "queues": 1, "loss": "reset"}
    return device


def root_disk(text: str) -> str:
    """Return the path that the guest has for the disk that ``--root`` means; else nothing."""
    name = text.removeprefix("/dev/")
    if name == "disk":
        name = "vda"
    if not name.startswith("vd") or not name[2:3].isalpha() or not name.isalnum():
        return ""
    return f"/dev/{name}"


def _check_root_disk(config: DomainConfig) -> None:
    path = config.root_disk
    if path and ord(path[len("/dev/vd")]) - ord("a") >= len(config.disks):
        disks = f"has {len(config.disks)} disks" if config.disks else "has no disk"
        raise BadInput(
            f"--root {config.root}: the domain {disks}",
            hint="give it by --disk" + ", in its place" * bool(config.disks),
        )


def cmdline_words(config: DomainConfig) -> list[str]:
    """Return what the guest's kernel or our initrd is told of root and folders."""
    words = []
    if config.root_disk:
        words += [f"root={config.root_disk}", "rw"]
    elif config.root and (config.kernel or config.initrd):
        words += [f"root={ROOT_TAG}", "rootfstype=virtiofs", "rw"]
    elif config.root:
        words.append(f"kvmpv.root={ROOT_TAG}")
    for device in config.devices:
        if device.kind == "fs" and device.spec.grammar is SHARE:
            words.append(f"kvmpv.share={device.options['tag']}")
    return words


def vsock(text: str) -> Device | None:
    """Return the socket device that ``--vsock`` means; None for no text."""
    return Device("vsock", VSOCK.parse(text)) if text else None


def rng(text: str, others: bool) -> Device | None:
    """Return the source of randomness that ``--rng`` means.

    Without a word of the user's there is one where other devices are: it costs nothing beside them.
    """
    if not text and not others:
        return None
    spec = RNG.parse(text or "on")
    if not spec.kind:
        raise spec.error("cannot be", "on, off, or rate=BYTES for each second")
    if spec.kind == "rate":
        spec.values["rate"] = _rate(spec)
    device = Device("rng", spec)
    device.options["rate"] = spec.values.get("rate", 0)
    return None if spec.kind == "off" else device


def parse(config: DomainConfig) -> list[Device]:
    """Return all devices of a domain in the order of their numbers: disks first, so that vda is."""
    found = [disk(given) for given in config.disks]
    found += [device for given in config.nets if (device := net(given)).source != "none"]
    found += [one for one in (root(config.root),) if one is not None]
    found += [share(given) for given in config.shares]
    found += [one for one in (vsock(config.vsock),) if one is not None]
    source = rng(config.rng, 0 < len(found) < MAX_DEVICES)
    check(found := [*found, *([source] if source else [])])
    _check_root_disk(config)
    return found


def check(devices: Iterable[Device]) -> None:
    """Raise ``BadInput`` for devices that cannot be in one domain."""
    devices = list(devices)
    if len(devices) > MAX_DEVICES:
        raise BadInput(
            f"{len(devices)} devices are too many for a domain",
            hint=f"at most {MAX_DEVICES} can be",
        )
    _check_twice(
        [(one, "MAC address", one.net.mac) for one in devices if one.net], "give each another one"
    )
    for kind, key in (("fs", "tag"), ("blk", "serial")):
        values = [(one, key, one.options[key]) for one in devices if one.kind == kind]
        _check_twice(values, f"give each another one: {key}=TEXT")
    groups: dict[str, Device] = {}
    for device in devices:
        if device.kind == "blk" and device.options["group"]:
            other = groups.setdefault(device.text_of("group"), device)
            if _limits(other) != _limits(device):
                raise device.error(
                    f"the limits of the group {device.text_of('group')} differ from those at"
                    f" {other.label}",
                    "give all disks of a group the same",
                )


def _limits(device: Device) -> list[object]:
    return [device.options[key] for key in ("iops", "iops_burst", "bps", "bps_burst")]


def _check_twice(values: Iterable[tuple[Device, str, object]], hint: str) -> None:
    seen: set[object] = set()
    for device, what, value in values:
        if value and value in seen:
            raise device.error(f"{what} {value} is taken by another device of this domain", hint)
        seen.add(value)


def _check_blocks(device: Device) -> None:
    for key in ("logical", "physical"):
        size = device.number(key)
        if size & (size - 1):
            raise device.error(f"{key}={size} cannot be", "block sizes are powers of two")
    logical, physical = device.number("logical") or SECTOR, device.number("physical")
    if logical > 4096:
        raise device.error(f"logical={logical} cannot be", "512 to 4096 can")
    if physical and physical < logical:
        raise device.error(
            f"physical={physical} is less than logical={logical}", "make it at least that"
        )


def _check_limits(device: Device, pairs: Iterable[tuple[str, str]]) -> None:
    given = False
    for rate, burst in pairs:
        given = given or bool(device.number(rate))
        if device.number(burst) and not device.number(rate):
            raise device.error(f"{burst} needs {rate}", f"give {rate}=N too")
        if device.number(burst) and device.number(burst) < device.number(rate):
            raise device.error(f"{burst} is less than {rate}", "a burst is what goes beyond")
    if device.options.get("group") and not given:
        raise device.error("group needs a limit to share", "give iops=N or bps=SIZE too")


def _refuse(device: Device, keys: set[str], hint: str) -> None:
    for key in device.spec.values:
        if key in keys:
            raise device.error(f"{key} is not possible here", hint)


def _size(device: Device) -> int:
    from kvmpv.toolstack.config import parse_size

    try:
        return parse_size(device.text)
    except BadInput as error:
        raise device.error(error.message, error.hint) from None


def _rate(spec: Spec) -> int:
    from kvmpv.toolstack.config import parse_size

    rate = parse_size(spec.text)
    if not rate:
        raise spec.error("a rate of nothing cannot be", "say off")
    return rate


def _tag(device: Device) -> str:
    """Return the tag of a folder that was given none: its last name, of what a tag may have."""
    from kvmpv.toolstack.specs import WORD_CHARACTERS

    name = os.path.basename(os.path.abspath(device.text))
    tag = "".join(one if one in WORD_CHARACTERS else "-" for one in name)[:TAG_MAX]
    return tag or "share"
