"""Where the patched kernel and the small root file system are, once they have been built."""

from __future__ import annotations

import os

from kvmpv.cache import folder
from kvmpv.errors import BadInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

CMDLINE: Final = "loglevel=4"
REMEDY: Final = "build it with scripts/run, or kvmpv kernel build"


def cache() -> str:
    """Return kvmpv's cache folder."""
    return folder()


def kernel() -> str:
    """Return the path of the patched kernel that was built last."""
    return _current("vmlinux", "patched kernel")


def initrd() -> str:
    """Return the path of the small root file system that was built last."""
    return _current("initrd.cpio", "small root file system")


def _current(file: str, what: str) -> str:
    path = f"{cache()}/current/{file}"
    if not os.path.exists(path):
        raise BadInput(f"there is no {what} yet", hint=REMEDY)
    return path
