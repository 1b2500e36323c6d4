"""What a domain shall be: options parsed and checked, before anything is made."""

from __future__ import annotations

import os

from kvmpv.abi.address_map import CMDLINE_MAX, MAX_VCPUS, MEMORY_MIN, MIB
from kvmpv.errors import BadInput
from kvmpv.toolstack.options import BY_FLAG, BY_NAME, OPTIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

    from kvmpv.toolstack.devices import Device

NAME_MAX: Final = 63
NAME_CHARACTERS: Final = frozenset(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
)
DIGITS_MAX: Final = 20  # more than any size has
UNITS: Final = {"K": 10, "M": 20, "G": 30, "T": 40}


class DomainConfig:
    """A domain's configuration; ``check`` has passed once ``make`` has returned it."""

    __slots__ = (*(option.name for option in OPTIONS if option.name != "config"), "devices")

    kernel: str
    initrd: str
    memory: int
    vcpus: int
    max_vcpus: int
    cmdline: str
    exec: str
    console: str
    disks: list[object]
    nets: list[object]
    shares: list[object]
    root: str
    vsock: str
    rng: str
    name: str
    cpu: str
    stats: bool
    json: bool
    trace: str
    devices: list[Device]

    @property
    def boots_itself(self) -> bool:
        """Whether the guest starts without our initrd: a kernel of the user's, or a disk's init."""
        return bool(self.kernel or self.root_disk)

    @property
    def root_disk(self) -> str:
        """The path that the guest has for the disk with its root; empty where that is elsewhere."""
        if not self.root:
            return ""
        from kvmpv.toolstack.devices import root_disk

        return root_disk(self.root)

    def full_cmdline(self, before: str) -> str:
        """Return the kernel's command line: ``before``, what the user said, what options mean."""
        words = [before, self.cmdline] if self.cmdline else [before]
        if self.root or self.shares:
            from kvmpv.toolstack.devices import cmdline_words

            words += cmdline_words(self)
        if self.exec:
            words.append("kvmpv.shell=off")
        return " ".join(words)


def make(values: Mapping[str, object]) -> DomainConfig:
    """Return the configuration that options by name give; raise ``BadInput`` for what cannot be."""
    given = dict(values)
    path = given.pop("config", "")
    if path:
        given = {**_read_file(str(path)), **given}
    config = DomainConfig()
    for name in given:
        if name not in BY_NAME:
            raise BadInput(f"unknown option {name!r}", hint=_nearest(name, list(BY_NAME)))
    for option in OPTIONS:
        if option.name != "config":
            value = given.get(option.name, option.default)
            setattr(config, option.name, _convert(option.name, value))
    config.devices = []
    _check(config)
    if config.disks or config.nets or config.shares or config.root or config.vsock or config.rng:
        from kvmpv.toolstack import devices  # late: a domain without any starts without them

        config.devices = devices.parse(config)
        _check_cmdline(config)
    return config


def parse_arguments(arguments: list[str]) -> dict[str, object]:
    """Return what a command line gives: ``--name VALUE``, ``--name=VALUE``, ``-m VALUE``."""
    values: dict[str, object] = {}
    rest = iter(arguments)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        option = BY_FLAG.get(flag)
        if option is None or (equals and not flag.startswith("--")):
            raise BadInput(f"unknown option {argument!r}", hint=_nearest(flag, list(BY_FLAG)))
        if option.kind is bool:
            if equals:
                raise BadInput(f"{flag} takes no value", hint=f"write {flag} alone")
            values[option.name] = True
            continue
        if not equals:
            value = next(rest, "\0")
            if value == "\0":
                raise BadInput(f"{flag} wants a value", hint=f"{flag} {option.metavar}")
        if option.kind == "list":
            values[option.name] = [*_as_list(values.get(option.name, ())), value]
        else:
            values[option.name] = value
    return values


def _as_list(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [value]


def parse_size(text: str) -> int:
    """Return the bytes that ``64M``, ``2G`` or a plain number of bytes mean."""
    digits, unit = (text[:-1], text[-1:].upper()) if text[-1:].upper() in UNITS else (text, "")
    if not _is_number(digits):
        raise BadInput(f"{text!r} is no size", hint="write 64M or 2G")
    return int(digits) << UNITS.get(unit, 0)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= DIGITS_MAX


def _nearest(name: str, known: list[str]) -> str:
    """Return what somebody may have meant."""
    import difflib

    found = difflib.get_close_matches(name, known, 1)
    return f"did you mean {found[0]}?" if found else "see kvmpv run --help"


def _read_file(path: str) -> dict[str, object]:
    import tomllib

    try:
        with open(path, "rb") as file:
            found = tomllib.load(file)
    except OSError as error:
        hint = "give the path of a TOML file: --config"
        raise BadInput(f"cannot read {path}: {error.strerror}", hint=hint) from None
    except ValueError as error:  # also what is no UTF-8
        hint = 'lines are like: memory = "64M"'
        raise BadInput(f"{path} is no TOML: {error}", hint=hint) from None
    if "config" in found:
        raise BadInput(f"{path} names another configuration", hint="take 'config' out of it")
    return found


def _convert(name: str, value: object) -> object:
    kind = BY_NAME[name].kind
    if kind == "list":
        return _as_list(value)
    if kind is bool and isinstance(value, bool):
        return value
    if kind is str and isinstance(value, str | os.PathLike):
        text = os.fsdecode(value)
        if "\0" in text:
            raise BadInput(f"{name} has a NUL in it", hint="take it out")
        return text
    if kind is not bool and kind is not str:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, str):
            if kind == "size":
                return parse_size(value)
            if _is_number(value):
                return int(value)
    what = {str: "a text", bool: "true or false", int: "a number"}.get(kind, "a size")  # type: ignore[call-overload]
    example = {"size": '"64M"', int: "2", bool: "true"}.get(kind, '"text"')
    raise BadInput(f"{name} wants {what}, not {value!r}", hint=f"such as {example}")


def _check(config: DomainConfig) -> None:
    _check_memory(config.memory)
    if not 1 <= config.vcpus <= MAX_VCPUS:
        raise BadInput(f"{config.vcpus} vCPUs are not possible", hint=f"1 to {MAX_VCPUS} are")
    config.max_vcpus = config.max_vcpus or config.vcpus
    if not config.vcpus <= config.max_vcpus <= MAX_VCPUS:
        raise BadInput(
            f"at most {config.max_vcpus} vCPUs are not possible",
            hint=f"{config.vcpus} (as many as at boot) to {MAX_VCPUS} are",
        )
    if "\n" in config.cmdline:
        raise BadInput("the command line has a line break in it", hint="take it out")
    _check_cmdline(config)
    name = config.name
    if len(name) > NAME_MAX or not NAME_CHARACTERS.issuperset(name) or name.startswith((".", "-")):
        raise BadInput(
            f"{name!r} is no name for a domain",
            hint=f"at most {NAME_MAX} letters, digits, '.', '_', '-', no '.' or '-' in front",
        )


def _check_cmdline(config: DomainConfig) -> None:
    own = len(os.fsencode(config.cmdline))
    room = CMDLINE_MAX - 65  # its NUL, what we put before it, and for --exec behind
    if config.devices:
        room = CMDLINE_MAX - 1 - (len(os.fsencode(config.full_cmdline(" " * 32))) - own)
    if own > room:
        raise BadInput(f"the command line has {own} bytes", hint=f"at most {room} are possible")


def _check_memory(size: int) -> None:
    if size < MEMORY_MIN:
        raise BadInput(f"{size} bytes of memory are too few", hint="give 2M or more")
    if size % MIB:
        raise BadInput(f"{size} bytes of memory are no whole number of MiB", hint="give 64M, say")
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > host:
        raise BadInput(
            f"{size // MIB} MiB of memory are more than this host has",
            hint=f"it has {host // MIB} MiB",
        )
