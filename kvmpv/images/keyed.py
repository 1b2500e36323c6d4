"""Files and folders that are built once for each state of their inputs, and kept."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kvmpv.cache import folder
from kvmpv.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


def cache() -> Path:
    """Return the folder of everything that is kept between runs."""
    return Path(folder())


def digest(parts: Iterable[bytes | str | Path]) -> str:
    """Hash inputs into a key; a path stands for its file's bytes."""
    state = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else part
        raw = data.encode() if isinstance(data, str) else data
        state.update(len(raw).to_bytes(8, "little"))
        state.update(raw)
    return state.hexdigest()[:16]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def build(name: str, key: str, make: Callable[[Path], None]) -> Path:
    """Return the path of ``name`` for ``key``; have ``make`` build it if it is not there.

    ``make`` is given a path that does not exist and makes a file or a folder of it. Interrupted
    builds leave nothing behind that a later one takes for whole.
    """
    within, last = os.path.split(name)
    parent = cache() / within
    stem, dot, suffix = last.partition(".")
    final = parent / f"{stem}-{key}{dot}{suffix}"
    if final.exists():
        return final
    try:
        with locked(parent / f".{stem}-{key}.lock"):
            if not final.exists():
                _make(final, make)
    except OSError as error:
        raise HostError(f"cannot build {final.name}: {error.strerror or error}") from error
    return final


def _make(final: Path, make: Callable[[Path], None]) -> None:
    room = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    try:
        make(room / "new")
        (room / "new").rename(final)
    finally:
        shutil.rmtree(room, ignore_errors=True)
