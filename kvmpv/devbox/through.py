"""Files and folders of the host that one command in the box has as they are: written through.

The rest of the host's root is read-only for the box, under an overlay that is gone with it.
docs/decisions/0009-named-files-go-through-9p.md tells why so.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kvmpv.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRIPT = Path(__file__).with_name("through.sh")
TAG = "host"  # what the emulator exports the host's root as
SHELL = "/run/kvmpv-box/busybox"
_NOT_OURS = ("/dev/", "/proc/", "/sys/")


@contextmanager
def through(paths: list[str], command: list[str]) -> Iterator[list[str]]:
    """Give what to run in the box in place of ``command``, so that it has ``paths`` as they are.

    It runs in this process's folder. A file that is missing is made, and removed if it is empty in
    the end. Raises BadInput for devices and sockets, which a box cannot have of its host.
    """
    made: list[str] = []
    try:
        words: list[str] = []
        for path in sorted({os.path.abspath(path) for path in paths}):
            if path.startswith(_NOT_OURS):
                continue
            if not os.path.lexists(path):
                _make(path)
                made.append(path)
            if not _inside(path, words):
                words += [_kind(path), os.path.realpath(path), path]
        yield [SHELL, "sh", str(SCRIPT), os.getcwd(), *words, "--", *command]
    finally:
        for path in made:
            with suppress(OSError):
                if not os.path.getsize(path):
                    os.unlink(path)


def _make(path: str) -> None:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
    except OSError as error:
        raise BadInput(f"cannot make {path}: {error.strerror}", hint="name another one") from None


def _kind(path: str) -> str:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise BadInput(f"cannot look at {path}: {error.strerror}", hint="see ls -l") from None
    if stat.S_ISDIR(mode):
        if os.path.realpath(path) == "/":
            raise BadInput("the dev box cannot have the whole host", hint="name a folder in /")
        return "d"
    if not stat.S_ISREG(mode):
        raise BadInput(
            f"{path} is a device or a socket of this host, and the dev box has none of these",
            hint="name a file or a folder",
        )
    return "f"


def _inside(path: str, words: list[str]) -> bool:
    """Tell whether a folder that was named has it in already; links may lead elsewhere."""
    folders = [words[at + 2] for at in range(0, len(words), 3) if words[at] == "d"]
    real = os.path.realpath(path) == path
    return real and any(path.startswith(f"{folder}/") for folder in folders)
