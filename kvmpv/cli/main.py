"""The command's entry: ``kvmpv run`` goes its short way, all else through typer.

typer alone takes longer to import than a guest to start, so ``run`` does without; both use the one
table of options in kvmpv/toolstack/options.py.
"""

from __future__ import annotations

import os
import sys

from kvmpv.errors import KvmpvError

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
    from kvmpv.cli.app import app

    return app()


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
        return result if isinstance(result, int) else 0
    except KvmpvError as error:
        line = str(error).replace("\n", "\\n")  # a path may have one in it
        print(f"kvmpv: {line}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone; do not let the interpreter complain at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
