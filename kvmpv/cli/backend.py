"""``kvmpv backend``: one device for any vhost-user front end, such as QEMU."""

from __future__ import annotations

import os
from typing import Annotated

import typer

HELP = """Serve one device to any vhost-user front end, in the foreground; Ctrl-C ends it.

Front ends connect to the socket one after the other; the socket is gone when the command ends.
They have to share their memory as a sealed memfd, which QEMU does with the options below, or to be
trusted not to truncate it: `--unsealed`, for libblkio, DPDK and the like.

Examples:

    kvmpv backend block --socket d.sock disk.img,iops=1000

    qemu-system-x86_64 -m 1G -object memory-backend-memfd,id=m,size=1G,share=on
    -machine memory-backend=m -chardev socket,id=d,path=d.sock -device vhost-user-blk-pci,chardev=d

    kvmpv backend net --socket n.sock nat

    qemu-system-x86_64 ... -chardev socket,id=n,path=n.sock
    -netdev vhost-user,id=n,chardev=n -device virtio-net-pci,netdev=n

    kvmpv backend rng --socket r.sock rate=1M

    kvmpv run --disk vhost-user=d.sock
"""

app = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode="markdown")

Socket = Annotated[str, typer.Option("--socket", metavar="PATH", help="Where to listen.")]
Unsealed = Annotated[
    bool, typer.Option("--unsealed", help="Take memory that the front end could truncate, too.")
]


def _serve(kind: str, spec: str, socket: str, unsealed: bool) -> None:
    from kvmpv.toolstack import serve

    serve.serve(serve.device(kind, spec), os.path.abspath(socket), unsealed=unsealed)


@app.command()
def block(
    disk: Annotated[str, typer.Argument(metavar="DISK", help="As --disk of kvmpv run has it.")],
    socket: Socket,
    unsealed: Unsealed = False,
) -> None:
    """Serve a disk: a raw image, a block device or null:SIZE."""
    _serve("block", disk, socket, unsealed)


@app.command()
def net(
    kind: Annotated[str, typer.Argument(metavar="NET", help="As --net of kvmpv run has it.")],
    socket: Socket,
    unsealed: Unsealed = False,
) -> None:
    """Serve a network card: nat, bridge=NAME or tap=NAME."""
    _serve("net", kind, socket, unsealed)


@app.command()
def rng(
    socket: Socket,
    rate: Annotated[str, typer.Argument(metavar="RATE", help="on, or rate=SIZE a second.")] = "on",
    unsealed: Unsealed = False,
) -> None:
    """Serve random numbers of this host's."""
    _serve("rng", rate, socket, unsealed)


@app.command()
def vsock(
    path: Annotated[str, typer.Argument(metavar="PATH", help="As --vsock of kvmpv run has it.")],
    socket: Socket,
    unsealed: Unsealed = False,
) -> None:
    """Serve sockets between guest and host, at PATH."""
    _serve("vsock", path, socket, unsealed)
