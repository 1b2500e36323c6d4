"""Rules of nftables, as libnftables-json(5) has them, and the program that takes them.

Each set of rules is a table of our own, replaced as a whole in one transaction: what a run that
was killed has left does not matter.
"""

from __future__ import annotations

from kvmpv.errors import HostError
from kvmpv.hostnet import tools

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final

    Statement = dict[str, Any]

PACKAGE: Final = "nftables"
ACCEPT: Final[Statement] = {"accept": None}
DROP: Final[Statement] = {"drop": None}
MASQUERADE: Final[Statement] = {"masquerade": None}


class Chain:
    """A chain at one of the kernel's hooks, with its rules in order."""

    __slots__ = ("hook", "kind", "name", "priority", "rules")

    def __init__(self, name: str, kind: str, hook: str, priority: int) -> None:
        self.name = name
        self.kind = kind
        self.hook = hook
        self.priority = priority
        self.rules: list[list[Statement]] = []

    def add(self, *statements: Statement) -> None:
        """Add a rule: its conditions, then what is done."""
        self.rules.append(list(statements))


def meta(key: str, value: object, op: str = "==") -> Statement:
    """Compare what the kernel knows of a packet, such as ``iifname``."""
    return _match({"meta": {"key": key}}, value, op)


def field(protocol: str, name: str, value: object, op: str = "==") -> Statement:
    """Compare a field of a packet's headers."""
    return _match({"payload": {"protocol": protocol, "field": name}}, value, op)


def raw(base: str, offset: int, length: int, value: object, op: str = "==") -> Statement:
    """Compare ``length`` bits at ``offset`` of a header that nft has no name for."""
    return _match({"payload": {"base": base, "offset": offset, "len": length}}, value, op)


def tracked(key: str, value: object) -> Statement:
    """Compare what connection tracking knows."""
    return _match({"ct": {"key": key}}, value, "in")


def to_this_host() -> Statement:
    """Match what goes to one of the host's own addresses."""
    return _match({"fib": {"result": "type", "flags": ["daddr"]}}, "local", "==")


def network(text: str) -> dict[str, Any]:
    """Return ``10.1.2.0/24`` as the rules want it."""
    address, _, length = text.partition("/")
    return {"prefix": {"addr": address, "len": int(length)}}


def either(*values: object) -> dict[str, Any]:
    """Return what stands for one of several values."""
    return {"set": list(values)}


def dnat(family: str, address: str, port: int) -> Statement:
    """Send it to another address and port."""
    return {"dnat": {"family": family, "addr": address, "port": port}}


def _match(left: dict[str, Any], value: object, op: str) -> Statement:
    return {"match": {"op": op, "left": left, "right": value}}


def replace(family: str, table: str, chains: Sequence[Chain]) -> None:
    """Put a table in place of what had its name; raise ``HostError`` if the kernel refuses."""
    own = {"family": family, "table": table}
    commands: list[dict[str, Any]] = [*_deletion(family, table), _add_table(family, table)]
    for chain in chains:
        base = {"type": chain.kind, "hook": chain.hook, "prio": chain.priority, "policy": "accept"}
        commands.append({"add": {"chain": {**own, "name": chain.name, **base}}})
        for rule in chain.rules:
            commands.append({"add": {"rule": {**own, "chain": chain.name, "expr": rule}}})
    _apply(commands)


def delete(family: str, table: str) -> None:
    """Remove a table, if it is there."""
    _apply(_deletion(family, table))


def tables(family: str) -> set[str]:
    """Return the names of all tables of a family; of none where the kernel does not say."""
    said = tools.run([tools.require("nft", PACKAGE), "list", "tables", family])[1]
    return {line.split()[-1] for line in said.splitlines() if line.startswith("table ")}


def _add_table(family: str, table: str) -> dict[str, Any]:
    return {"add": {"table": {"family": family, "name": table}}}


def _deletion(family: str, table: str) -> list[dict[str, Any]]:
    # Only what is there can be deleted; adding what is there does nothing.
    return [_add_table(family, table), {"delete": {"table": {"family": family, "name": table}}}]


def _apply(commands: list[dict[str, Any]]) -> None:
    import json

    text = json.dumps({"nftables": commands}).encode()
    # Not "-f -": that opens /dev/stdin, which a small host may not have.
    status, said = tools.run([tools.require("nft", PACKAGE), "-j", "-f", "/proc/self/fd/0"], text)
    if status:
        reason = next((line for line in said.splitlines() if line.strip()), f"status {status}")
        raise HostError(f"nft refuses our rules: {reason}", hint="modprobe nf_tables")
