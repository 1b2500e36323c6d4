"""The command's entry: ``kvmpv run`` goes its short way, all else through typer.

typer alone takes longer to import than a guest to start, so ``run`` does without; both use the one
table of options in kvmpv/toolstack/options.py.
"""

from __future__ import annotations

import os
import sys

from kvmpv.errors import BadInput, KvmpvError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def main() -> int:
    """Run the command that this process was started as; return its exit status."""
    _complete_standard_descriptors()
    arguments = sys.argv[1:]
    if arguments[:1] == ["run"] and "--help" not in arguments and "-h" not in arguments:
        return guarded(lambda: _run(arguments[1:]))
    return guarded(_others)


def _run(arguments: list[str]) -> int:
    from kvmpv.cli.run import run

    return run(arguments)


def _others() -> object:
    from typer._click.exceptions import NoArgsIsHelpError, UsageError

    from kvmpv.cli.app import app

    try:
        return app(standalone_mode=False)
    except NoArgsIsHelpError as error:  # the help is printed already
        return error.exit_code
    except UsageError as error:  # which typer would draw a box around
        text = error.format_message().rstrip(".")
        hint = f"see {error.ctx.command_path} --help" if error.ctx else "see kvmpv --help"
        raise BadInput(text[:1].lower() + text[1:], hint=hint) from None


def _complete_standard_descriptors() -> None:
    """Open those that our starter has closed: what we open next would be taken for one of them."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def guarded(command: Callable[[], object]) -> int:
    """Run a command; turn what it raises into one line on stderr and an exit status."""
    try:
        result = command()
        print(end="", flush=True)  # while there is somebody to tell of what goes wrong
        return result if isinstance(result, int) else 0
    except KvmpvError as error:
        print(f"kvmpv: {printable(str(error))}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _drop_output()  # whoever read it has gone
        return 1
    except OSError as error:  # of the host, where nobody had better words for it
        where = f"{error.filename}: " if error.filename else ""
        print(f"kvmpv: {printable(f'{where}{error.strerror or error}')}", file=sys.stderr)
        _drop_output()
        return 2


def _drop_output() -> None:
    """Have the interpreter not complain at its exit of what it cannot write."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
