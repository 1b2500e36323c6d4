"""Where things lie: the checkout, the caches, the logs; and how a cache is filled."""

from __future__ import annotations

import fcntl
import hashlib
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kvmpv.cache import folder

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKOUT = Path(__file__).resolve().parents[2]
BUILD = CHECKOUT / "build"


def cache() -> Path:
    """Give the folder of everything that is kept between runs and shared between checkouts."""
    path = Path(folder())
    path.mkdir(parents=True, exist_ok=True)
    return path


def log_file(name: str) -> Path:
    """Give the path of a long step's log."""
    logs = cache() / "logs"
    logs.mkdir(exist_ok=True)
    return logs / f"{name}.log"


def digest(*parts: bytes) -> str:
    """Hash inputs into a key; where one part ends is part of the key."""
    state = hashlib.sha256()
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.hexdigest()


def files_digest(paths: list[Path], *more: bytes) -> str:
    """Hash the names, inside the checkout, and the bytes of files, in the order of their names."""
    parts = list(more)
    for path in sorted(paths):
        parts += [os.fsencode(path.relative_to(CHECKOUT)), path.read_bytes()]
    return digest(*parts)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``path``, so that two builds of one thing follow each other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def write_whole(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file so that readers see the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.chmod(mode)
    temporary.replace(path)
