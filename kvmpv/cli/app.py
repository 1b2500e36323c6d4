"""The typer application: every command but the short way of ``run``."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer

import kvmpv
from kvmpv.cli import backend, disk, doctor, image, kernel, net
from kvmpv.toolstack.options import OPTIONS

app = typer.Typer(
    help="Run Linux guests on KVM the way Xen does, from Python.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

RUN_HELP = """Run a domain in the foreground, until it ends.

Without options: the patched kernel, a small shell on this terminal; Ctrl-] leaves.

Examples:

    kvmpv run

    kvmpv run --exec 'uname -r' --vcpus 2

    kvmpv run --kernel vmlinux --initrd initrd.cpio -m 1G --cmdline 'console=hvc0'

    echo hello | kvmpv run --exec 'tr a-z A-Z'

    kvmpv run --disk data.img --net nat --share . --exec 'ls /mnt'

    kvmpv run --disk debian.img --root disk --net nat,forward=tcp:8080:80

What the options for devices take is in docs/devices.md.

Exit status: that of CMD with --exec; 0 when the guest powers off; 2 for bad input; 123 when the
host or kvmpv failed; 124 when KVM cannot go on; 125 when the guest crashed; 130 when it was ended.
"""


def _version(wanted: bool) -> None:
    if wanted:
        print(f"kvmpv {kvmpv.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Run Linux guests on KVM the way Xen does, from Python."""


def _run(**values: Any) -> None:
    from kvmpv.cli.run import run

    arguments: list[str] = []
    for option in OPTIONS:
        value = values.get(option.name)
        if value is True:
            arguments.append(option.flag)
        elif isinstance(value, list):
            arguments += [word for one in value for word in (option.flag, str(one))]
        elif value:
            arguments += [option.flag, str(value)]
    raise typer.Exit(run(arguments))


def _run_signature() -> inspect.Signature:
    """Return what typer is to see: one keyword for each option of the table."""
    parameters = []
    for option in OPTIONS:
        kind: Any = bool if option.kind is bool else list[str] if option.kind == "list" else str
        flags = [option.flag] + ([option.short] if option.short else [])
        declared = typer.Option(*flags, help=option.help, metavar=option.metavar or None)
        parameters.append(
            inspect.Parameter(
                option.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=False if kind is bool else [] if option.kind == "list" else "",
                annotation=Annotated[kind, declared],
            )
        )
    return inspect.Signature(parameters)


_run.__signature__ = _run_signature()  # type: ignore[attr-defined]
_run.__annotations__ = {
    name: parameter.annotation for name, parameter in _run_signature().parameters.items()
}
app.command("run", help=RUN_HELP)(_run)

app.command("doctor", help=doctor.HELP)(doctor.doctor)

app.add_typer(kernel.app, name="kernel")

app.add_typer(disk.app, name="disk")

app.add_typer(image.app, name="image")

app.add_typer(backend.app, name="backend")

app.add_typer(net.app, name="net")
