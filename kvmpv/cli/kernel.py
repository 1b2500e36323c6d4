"""``kvmpv kernel``: the patched guest kernels that are built and kept here."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from kvmpv.errors import BadInput
from kvmpv.images import kernel

app = typer.Typer(help=__doc__, no_args_is_help=True)

Variant = Annotated[str, typer.Option("--variant", help=f"One of: {', '.join(kernel.VARIANTS)}.")]
Source = Annotated[
    str, typer.Option("--source", metavar="TARBALL", help="Not Debian's linux-source-6.1.")
]
Json = Annotated[bool, typer.Option("--json", help="Say it for a program.")]


@app.command()
def build(variant: Variant = "pv", source: Source = "") -> None:
    """Build a variant if its inputs are new, and print the path of its vmlinux.

    Takes some minutes. Patches, configuration, source and compiler are its inputs: with the same
    ones, the same bytes come out, and the second build is none.
    """
    print(kernel.build(variant, source=Path(source) if source else None))


@app.command(name="list")
def list_(as_json: Json = False) -> None:
    """List the kernels that are built; those with a * are what ``build`` would give now."""
    current = {kernel.wanted(variant).key for variant in kernel.VARIANTS}
    rows = [
        {
            "variant": found.variant,
            "key": found.key,
            "current": found.key in current,
            "built": int(found.folder.stat().st_mtime),
            "path": str(found.folder),
        }
        for found in kernel.listing()
    ]
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        mark = "*" if row["current"] else " "
        date = time.strftime("%F %H:%M", time.localtime(float(str(row["built"]))))
        print(f"{mark} {row['variant']:6} {row['key']}  {date}  {row['path']}")


@app.command()
def path(variant: Variant = "pv", as_json: Json = False) -> None:
    """Print the path of a variant's vmlinux; status 2 if it is not built."""
    found = kernel.path(variant)
    if as_json:
        names = ("vmlinux", "bzImage", "config", "System.map")
        print(json.dumps({name: str(found.with_name(name)) for name in names}))
    else:
        print(found)


@app.command()
def config(variant: Variant = "pv") -> None:
    """Print the whole configuration that a variant was built with."""
    wanted = kernel.wanted(variant)
    if not wanted.built:
        raise BadInput(
            f"the {variant} kernel is not built", hint=f"kvmpv kernel build --variant {variant}"
        )
    print(wanted.config.read_text(), end="")
