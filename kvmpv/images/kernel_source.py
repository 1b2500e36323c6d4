"""The guest kernel's source: Debian's tarball with our series on top."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kvmpv.errors import BadInput, HostError
from kvmpv.images import keyed

if TYPE_CHECKING:
    from kvmpv.images.kernel_make import Job

VERSION = "6.1"
PLACE = Path("/usr/src")

# Not needed for x86 without modules, and a third of the files.
_LEFT_OUT = ("drivers/gpu/*.[ch]", "tools/testing", "drivers/net/ethernet/*.[ch]", "sound/*.[ch]")


def find() -> Path:
    """Return the source's tarball; raises HostError if the package is not installed."""
    for suffix in ("xz", "zst", "gz"):
        tarball = PLACE / f"linux-source-{VERSION}.tar.{suffix}"
        if tarball.exists():
            return tarball
    package = f"linux-source-{VERSION}"
    raise HostError(
        f"the kernel's source is missing ({PLACE}/{package}.tar.xz)",
        hint=f"install the Debian package {package}",
    )


def series(patches: Path) -> list[Path]:
    """Return the patches in the order of the file ``series``; ``#`` begins a comment."""
    try:
        lines = (patches / "series").read_text().splitlines()
    except OSError as error:
        raise BadInput(f"cannot read the patch series: {error}") from error
    names = [line.partition("#")[0].strip() for line in lines]
    found = [patches / name for name in names if name]
    for patch in found:
        if not patch.exists():
            raise BadInput(f"the patch {patch.name} of the series is missing in {patches}")
    return found


def digest(tarball: Path) -> str:
    """Hash the tarball, or remember its hash from the last time that it had this size and date."""
    try:
        facts = tarball.stat()
    except OSError as error:
        raise BadInput(f"cannot read {tarball}: {error.strerror}") from error
    stamp = f"{tarball} {facts.st_size} {facts.st_mtime_ns} {facts.st_ino}"
    note = keyed.cache() / "kernel" / f".source-{hashlib.sha256(stamp.encode()).hexdigest()[:16]}"
    with suppress(OSError):
        return note.read_text()
    with tarball.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    with suppress(OSError):  # the memory is a convenience
        note.parent.mkdir(parents=True, exist_ok=True)
        fresh = note.with_suffix(".new")
        fresh.write_text(found)
        fresh.rename(note)
    return found


def unpack(tarball: Path, tree: Path, job: Job) -> None:
    """Unpack the tarball into the new folder ``tree``."""
    job.say("unpacking")
    tree.mkdir()
    left_out = [f"--exclude=*/{name}" for name in _LEFT_OUT]
    command = ["tar", "-x", "-f", str(tarball), "-C", str(tree), "--strip-components=1", *left_out]
    status = job.run(command, tree)
    if status or not (tree / "Kconfig").exists():
        job.raise_if_full()
        raise BadInput(f"{tarball} is no kernel source", hint=f"log: {job.log}")


def apply(patches: Path, tree: Path, tarball: Path, job: Job) -> None:
    """Apply the series, with offsets but without fuzz; raises BadInput with the patch's name."""
    job.say("patching")
    for patch in series(patches):
        command = ["patch", "-p1", "-F0", "--no-backup-if-mismatch", "-t", "-N", "-i", str(patch)]
        if job.run(command, tree):
            job.raise_if_full()
            raise BadInput(
                f"{patch.name} does not apply to {tarball.name}",
                hint=f"the series is for Debian 12's linux-source-{VERSION}; log: {job.log}",
            )
