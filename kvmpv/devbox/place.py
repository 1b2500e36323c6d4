"""Where a box keeps its things, and how it is told from others."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from kvmpv.images import keyed

CHECKOUT = Path(__file__).resolve().parents[2]
_KEEP_LOST = 10


class Place:
    """The folder of one box: one for each checkout and name."""

    def __init__(self, name: str = "") -> None:
        self.name = name or os.environ.get("KVMPV_DEVBOX", "") or "default"
        tag = hashlib.sha256(f"{CHECKOUT}\0{self.name}".encode()).hexdigest()[:12]
        self.folder = keyed.cache() / "devbox" / f"box-{tag}"
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def socket(self) -> Path:
        """Where the keeper listens."""
        return self.folder / "keeper.sock"

    @property
    def short_socket(self) -> str:
        """The same as a path that fits a socket's address, whatever the folder's length."""
        path = str(self.socket)
        return path if len(os.fsencode(path)) < 108 else os.path.relpath(path)

    @property
    def lock(self) -> Path:
        """Held by whoever starts the box."""
        return self.folder / "start.lock"

    @property
    def console(self) -> Path:
        """What the box's kernel says."""
        return self.folder / "console.log"

    @property
    def log(self) -> Path:
        """What the keeper and the emulator say."""
        return self.folder / "keeper.log"

    @property
    def retries(self) -> Path:
        """One line for each command that was tried again in a fresh box."""
        return self.folder / "retries"

    def keep_console(self) -> Path:
        """Put a lost box's console where the next box does not overwrite it."""
        kept = self.folder / f"lost-{time.strftime('%Y%m%d-%H%M%S')}.log"
        if self.console.exists():
            self.console.rename(kept)
        for old in sorted(self.folder.glob("lost-*.log"))[:-_KEEP_LOST]:
            old.unlink(missing_ok=True)
        return kept
