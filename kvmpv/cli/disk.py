"""``kvmpv disk``: the disk images that domains use."""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from kvmpv.errors import printable
from kvmpv.images import disk, disk_use
from kvmpv.toolstack.config import parse_size

app = typer.Typer(help=__doc__, no_args_is_help=True)

Image = Annotated[str, typer.Argument(metavar="PATH", help="The image.")]
Size = Annotated[str, typer.Argument(metavar="SIZE", help="Such as 512M or 20G.")]
Json = Annotated[bool, typer.Option("--json", help="Say it for a program.")]


@app.command()
def create(
    path: Image,
    size: Size,
    format: Annotated[str, typer.Option("--format", help="raw or qcow2.")] = "raw",  # noqa: A002
    preallocate: Annotated[
        bool, typer.Option("--preallocate", help="Take all its room at once.")
    ] = False,
) -> None:
    """Make an empty disk image. It takes no room before it is written to."""
    disk.create(Path(path), parse_size(size), format=format, preallocate=preallocate)


@app.command()
def resize(
    path: Image,
    size: Annotated[str, typer.Argument(metavar="SIZE", help="Such as 20G, or +5G for more.")],
    shrink: Annotated[bool, typer.Option("--shrink", help="Cut off what lies behind.")] = False,
) -> None:
    """Give an image another size; a domain that runs on it is told.

    The partitions and file systems in it stay as they are: resize2fs and the like change them.
    """
    image = Path(path)
    more = size.startswith("+")
    wanted = parse_size(size[more:]) + (disk_use.inspect(image).size if more else 0)
    users = disk.resize(image, wanted, shrink=shrink)
    told = _tell_workers(image)
    for user in users:
        how = "is told of the new size" if user in told else "sees the new size when it looks again"
        print(f"kvmpv: {user} has it open, and {how}", file=sys.stderr)


def _tell_workers(image: Path) -> set[str]:
    """Have the workers of the domains that use an image look at its size; return whose."""
    told = set()
    for pid, user in disk_use.workers(image).items():
        with suppress(OSError):
            os.kill(pid, signal.SIGHUP)
            told.add(user)
    return told


@app.command()
def info(path: Image, as_json: Json = False) -> None:
    """Tell what an image is, what it takes, what is in it, and who uses it."""
    found = disk_use.describe(Path(path))
    if as_json:
        print(json.dumps(asdict(found)))
        return
    rows = {
        "format": found.format + (f", on {found.backing}" if found.backing else ""),
        "size": _size(found.size),
        "allocated": "" if found.device else _size(found.allocated),
        "partitions": found.partitions,
        "file system": found.file_system + (f" ({found.label})" if found.label else ""),
        "used by": ", ".join(found.users) or "nobody",
    }
    for key, value in rows.items():
        if value:
            print(f"{key:12} {printable(value)}")


def _size(size: int) -> str:
    for unit, shift in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << shift:
            return f"{size / (1 << shift):.4g} {unit} ({size} bytes)"
    return f"{size} bytes"
