"""Where things lie: the checkout, the caches, the logs; and what a build depends on."""

from __future__ import annotations

import os
from pathlib import Path

from kvmpv.cache import folder
from kvmpv.images.keyed import digest

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


def files_digest(paths: list[Path], *more: bytes) -> str:
    """Hash the names, inside the checkout, and the bytes of files, in the order of their names."""
    parts: list[bytes | str | Path] = list(more)
    for path in sorted(paths):
        parts += [os.fsencode(path.relative_to(CHECKOUT)), path.read_bytes()]
    return digest(parts)


def write_whole(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file so that readers see the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.chmod(mode)
    temporary.replace(path)
