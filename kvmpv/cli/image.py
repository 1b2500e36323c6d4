"""``kvmpv image``: root file systems for guests, as disk images."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from kvmpv.errors import BadInput
from kvmpv.images import debian
from kvmpv.toolstack.config import parse_size

app = typer.Typer(help=__doc__, no_args_is_help=True)

Kind = Annotated[str, typer.Argument(metavar="debian", help="What to build.")]
Suite = Annotated[str, typer.Option("--suite", metavar="NAME", help="Debian's release.")]
Packages = Annotated[
    str, typer.Option("--packages", metavar="A,B", help="More packages to install.")
]
Hostname = Annotated[str, typer.Option("--hostname", metavar="NAME", help="The guest's name.")]
Json = Annotated[bool, typer.Option("--json", help="Say it for a program.")]


@app.command()
def build(
    kind: Kind,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="PATH", help="Put a disk of it there.")
    ] = "",
    size: Annotated[str, typer.Option("--size", metavar="SIZE", help="The disk's size.")] = "2G",
    suite: Suite = debian.SUITE,
    packages: Packages = "",
    hostname: Hostname = debian.HOSTNAME,
    again: Annotated[bool, typer.Option("--again", help="Build it anew, with newer packages.")] = (
        False
    ),
) -> None:
    """Build a Debian root file system, and print its path.

    The whole raw disk is ext4, without partitions. Root logs in without a password; the network is
    set up by DHCP; commands of `kvmpv run --exec` are taken. Packages come from where this
    machine's apt gets its own. What is built is kept, and copied to PATH: the copy is yours.

        kvmpv image build debian --output d.img --size 8G

        kvmpv run --disk d.img --root disk --net nat
    """
    bytes_wanted = parse_size(size)
    wanted = _recipe(kind, suite, packages, hostname)
    target = Path(output) if output else None
    if target:
        debian.check_output(target, bytes_wanted)
    made = debian.build(wanted, sys.stderr, again=again)
    if target:
        debian.place(made, target, bytes_wanted)
    print(target or made)


@app.command(name="list")
def list_(as_json: Json = False) -> None:
    """List the images that are built and kept."""
    rows: list[dict[str, Any]] = [
        {
            "suite": path.stem.rpartition("-")[0],
            "key": path.stem.rpartition("-")[2],
            "built": int(path.stat().st_mtime),
            "allocated": path.stat().st_blocks * 512,
            "path": str(path),
        }
        for path in debian.listing()
    ]
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        date = time.strftime("%F %H:%M", time.localtime(row["built"]))
        print(f"{row['suite']:10} {date}  {row['allocated'] >> 20:5} MiB  {row['path']}")


@app.command()
def path(
    kind: Kind,
    suite: Suite = debian.SUITE,
    packages: Packages = "",
    hostname: Hostname = debian.HOSTNAME,
) -> None:
    """Print the path of the kept image; status 2 if it is not built."""
    found = _recipe(kind, suite, packages, hostname).path
    if not found.exists():
        raise BadInput(f"the {kind} image is not built", hint=f"kvmpv image build {kind}")
    print(found)


def _recipe(kind: str, suite: str, packages: str, hostname: str) -> debian.Recipe:
    if kind != "debian":
        raise BadInput(f"there is no image {kind!r}", hint="there is: debian")
    return debian.recipe(suite, [name for name in packages.split(",") if name], hostname)
