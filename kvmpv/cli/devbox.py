"""``kvmpv devbox``: a KVM host on any machine, in an emulator."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Annotated

import typer

from kvmpv.devbox import debian, terminal
from kvmpv.devbox import soak as soaking
from kvmpv.devbox.box import Box, guest_environment, guest_folder
from kvmpv.devbox.through import through
from kvmpv.errors import KvmpvError, LostBox

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)

Name = Annotated[str, typer.Option("--name", help="Which box: several may be up at once.")]
Stay = Annotated[bool, typer.Option("--stay", help="Keep the box when its owners are gone.")]
Share = Annotated[list[str], typer.Option("--share", help="One more folder to be seen live.")]
Retry = Annotated[bool, typer.Option("--retry", help="If the box is lost, once more in a new one.")]
Through = Annotated[
    list[str],
    typer.Option("--through", metavar="PATH", help="A file or folder that CMD has as it is here."),
]
Json = Annotated[bool, typer.Option("--json", help="Say it for a program.")]
Command = Annotated[list[str], typer.Argument(help="The command, after --.", metavar="CMD")]


@app.command()
def up(name: Name = "", stay: Stay = False, share: Share = []) -> None:  # noqa: B006
    """Start the box and wait until it is up; it ends with the calling process, or stays."""
    box = Box(name)
    _announce(box)
    box.up(owner=_owner(), stay=stay, shares=[os.path.abspath(path) for path in share])
    status = box.wait()
    _say(f"dev box: up after {status['boot_seconds']} s (console: {status['console']})")
    if not debian.emulator().mended:
        _say("dev box: its emulator is one whose guests may die or hang (docs/devbox.md)")


@app.command()
def down(name: Name = "") -> None:
    """End the box and everything in it."""
    _say("dev box: ended" if Box(name).down() else "dev box: was not up")


@app.command()
def run(
    command: Command,
    name: Name = "",
    retry: Retry = False,
    paths: Through = [],  # noqa: B006
) -> None:
    """Run CMD in the box, which is started if need be; its status is this command's.

    What CMD writes outside of the checkout is gone with the box, but for --through.
    """
    if not paths:
        raise typer.Exit(_run_or_retry(Box(name), command, retry))
    with through(paths, command) as wrapped:
        raise typer.Exit(_run_or_retry(Box(name), wrapped, retry))


def _run_or_retry(box: Box, command: list[str], retry: bool) -> int:
    try:
        return _run(box, command, stdin=not retry)
    except LostBox as lost:
        if not retry:
            raise
        with box.place.retries.open("a") as file:
            file.write(f"{time.strftime('%F %T')} {' '.join(command)}\n")
        _say(f"{lost}; trying once more in a fresh box")
        return _run(box, command, stdin=False)


@app.command()
def shell(name: Name = "") -> None:
    """Open a shell in the box, in this folder."""
    raise typer.Exit(_run(Box(name), ["bash", "-i"], stdin=True))


@app.command()
def soak(
    count: Annotated[int, typer.Argument(min=1, help="How many guests.")] = 50,
    name: Name = "",
    command: Annotated[list[str] | None, typer.Argument(help="Boot with this command.")] = None,
) -> None:
    """Boot guests with two vCPUs in the box and print how many came up."""

    def told(number: int, outcome: soaking.Outcome) -> None:
        _say(f"{number:3}/{count}  {outcome.seconds:5.1f} s  {outcome.verdict or 'up'}")

    outcomes = soaking.soak(Box(name), count, _owner(), told, command or soaking.COMMAND)
    good = [outcome.seconds for outcome in outcomes if not outcome.verdict]
    middle = f", median {sorted(good)[len(good) // 2]:.1f} s" if good else ""
    print(f"{len(good)} of {count} came up{middle}")
    raise typer.Exit(0 if len(good) == count else 1)


@app.command()
def status(name: Name = "", as_json: Json = False) -> None:
    """Tell whether the box is up, since when, and who keeps it."""
    found = Box(name).status()
    if as_json:
        print(json.dumps(found or {"up": False}))
    elif found is None:
        print("down")
    else:
        for key, value in found.items():
            print(f"{key:16} {value}")
    raise typer.Exit(0 if found else 1)


def _run(box: Box, command: list[str], *, stdin: bool) -> int:
    if not debian.fetched():
        _announce(box)
    box.up(owner=_owner())
    link = box.connect()
    if link is None:
        raise LostBox("lost box: it ended at once", console=str(box.place.console))
    with link:
        status: int = box.guarded(
            lambda: terminal.run(
                link, command, stdin=stdin, env=guest_environment(), cwd=guest_folder()
            )
        )
    return status


def _announce(box: Box) -> None:
    if box.status() is not None:
        _say("dev box: is up")
    elif debian.fetched():
        _say(f"dev box: starting (log: {box.place.log})")
    else:
        _say(f"dev box: fetching its emulator and kernel, once (log: {box.place.log})")


def _owner() -> int:
    """Return the process that the box belongs to: the caller's shell or test run."""
    given = os.environ.get("KVMPV_DEVBOX_OWNER", "")
    if given.isdigit():
        return int(given)
    parent = os.getppid()
    return parent if parent > 1 else os.getpid()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Run ``scripts/devbox``."""
    try:
        app()
    except KvmpvError as error:
        _say(f"devbox: {error}")
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
