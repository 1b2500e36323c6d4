"""``kvmpv net``: the networks that domains use on this host."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from kvmpv.hostnet.status import Network

app = typer.Typer(help=__doc__, no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Say it for a program.")]
COLUMNS = ("DOMAIN", "NETWORK", "TAP", "MAC", "ADDRESS", "FORWARDS", "SENT", "RECEIVED")
UNITS = ("B", "K", "M", "G", "T")


def _networks() -> list[Network]:
    from kvmpv.hostnet import status

    return status.networks()


@app.command(name="list")
def list_(as_json: Json = False) -> None:
    """List the networks that domains use."""
    found = _networks()
    if as_json:
        names = ("name", "kind", "subnet", "prefix6")
        rows = [{name: getattr(one, name) for name in names} for one in found]
        print(
            json.dumps(
                [row | {"cards": len(one.cards)} for row, one in zip(rows, found, strict=True)]
            )
        )
        return
    for one in found:
        ranges = " ".join(part for part in (one.subnet, one.prefix6) if part)
        cards = f"{len(one.cards)} card{'' if len(one.cards) == 1 else 's'}"
        print(f"{one.name:15} {one.kind:7} {cards:9} {ranges}".rstrip())


@app.command()
def status(as_json: Json = False) -> None:
    """Say who is in which network, with addresses, forwarded ports and what has passed.

    An address in brackets has not been asked for yet.
    """
    from kvmpv.hostnet.status import as_dict

    found = _networks()
    if as_json:
        print(json.dumps([as_dict(one) for one in found]))
        return
    rows: list[tuple[str, ...]] = [COLUMNS]
    for one in found:
        for card in one.cards:
            given = card.address if card.leased else f"({card.address})"
            rows.append(
                (
                    card.domain if not card.index else f"{card.domain} {card.index}",
                    card.network,
                    card.tap,
                    card.mac,
                    given if card.address else " ".join(card.seen) or "-",
                    " ".join(card.forwards) or "-",
                    _size(card.traffic.sent_bytes),
                    _size(card.traffic.received_bytes),
                )
            )
    if len(rows) > 1:
        _print_table(rows)
    for one in found:
        if one.kind == "nat" and not one.dnsmasq:
            print(f"{one.name}: its dnsmasq is gone; the next domain starts it again")


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _size(count: float) -> str:
    for unit in UNITS:
        if count < 1024 or unit == UNITS[-1]:
            break
        count /= 1024
    return f"{count:.0f}{unit}" if count >= 10 or unit == "B" else f"{count:.1f}{unit}"
