"""Programs of the host that networks are made with."""

from __future__ import annotations

import os

from kvmpv.errors import HostError


def require(name: str, package: str) -> str:
    """Return the path of a program; raise ``HostError`` with the Debian package that has it."""
    for place in (*os.environ.get("PATH", "").split(":"), "/usr/sbin", "/sbin"):
        path = f"{place}/{name}"
        if place and os.access(path, os.X_OK):
            return path
    raise HostError(f"there is no {name} on this host", hint=f"apt install {package}")
