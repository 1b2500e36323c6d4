"""The patched guest kernel: built from Debian's source once for each state of its inputs, and kept.

The cache holds one folder for each variant and key, with vmlinux, bzImage, config and System.map.
"""

from __future__ import annotations

import fcntl
import shutil
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from kvmpv.errors import BadInput, HostError
from kvmpv.images import kernel_config, kernel_make, kernel_source, keyed

if TYPE_CHECKING:
    from collections.abc import Iterator

PATCHES = Path(__file__).parents[2] / "guest-patches"
ROOM = 3 << 30  # bytes that a build needs while it runs; what is kept is under 30 MB

# A variant is its fragments in order, and about how many files it compiles, for the progress bar.
VARIANTS = {"pv": (("pv",), 1490), "debug": (("pv", "debug"), 1560)}
_FORMAT = "1"


@dataclass(frozen=True, slots=True)
class Kernel:
    """One build of a variant; ``folder`` need not be there yet."""

    variant: str
    key: str
    folder: Path

    @property
    def vmlinux(self) -> Path:
        """The ELF without symbols: what ``kvmpv run`` boots."""
        return self.folder / "vmlinux"

    @property
    def config(self) -> Path:
        """The whole configuration that it was built with."""
        return self.folder / "config"

    @property
    def built(self) -> bool:
        """Tell whether it is in the cache."""
        return self.folder.is_dir()


def wanted(variant: str = "pv", *, source: Path | None = None) -> Kernel:
    """Return what ``build`` would return, without building it.

    Raises BadInput for an unknown variant, HostError where the source or a tool is missing.
    """
    fragments = _fragments(variant)
    tarball = source or kernel_source.find()
    code = sorted(Path(__file__).parent.glob("kernel*.py"))
    parts: list[str | bytes | Path] = [_FORMAT, kernel_source.digest(tarball)]
    parts += [kernel_make.tool_versions(), *code, *fragments]
    parts += [PATCHES / "series", *kernel_source.series(PATCHES)]
    key = keyed.digest(parts)
    return Kernel(variant, key, _cache() / f"{variant}-{key}")


def path(variant: str = "pv") -> Path:
    """Return the path of a variant's vmlinux; raises BadInput if it is not built."""
    kernel = wanted(variant)
    if not kernel.built:
        raise BadInput(
            f"the {variant} kernel is not built", hint=f"kvmpv kernel build --variant {variant}"
        )
    return kernel.vmlinux


def listing() -> list[Kernel]:
    """Return every build in the cache, the newest first."""
    folders = [folder for folder in _cache().glob("[!.]*-*") if folder.is_dir()]
    folders.sort(key=lambda folder: folder.stat().st_mtime, reverse=True)
    split = [(folder, *folder.name.rpartition("-")[::2]) for folder in folders]
    return [Kernel(variant, key, folder) for folder, variant, key in split]


def build(variant: str = "pv", *, source: Path | None = None, say: IO[str] | None = None) -> str:
    """Return the path of a variant's vmlinux, building it if its inputs are new.

    What it does goes to ``say`` (stderr if None), make's output to a log. Raises BadInput and
    HostError, each with what and how to mend.
    """
    out = say or sys.stderr
    _fragments(variant)
    kernel_make.check_packages()
    kernel = wanted(variant, source=source)
    if kernel.built:
        return str(kernel.vmlinux)
    try:
        with _locked(kernel, out):
            if not kernel.built:
                _build(kernel, source or kernel_source.find(), out)
    except OSError as error:
        raise HostError(f"cannot build the kernel: {error.strerror or error}") from error
    return str(kernel.vmlinux)


def _cache() -> Path:
    return keyed.cache() / "kernel"


def _fragments(variant: str) -> list[Path]:
    if variant not in VARIANTS:
        known = ", ".join(VARIANTS)
        raise BadInput(f"there is no kernel variant {variant!r}", hint=f"there are: {known}")
    if not PATCHES.is_dir():
        raise BadInput(f"{PATCHES} is missing", hint="build kernels from a checkout of kvmpv")
    return [PATCHES / "config" / f"{name}.config" for name in VARIANTS[variant][0]]


@contextmanager
def _locked(kernel: Kernel, out: IO[str]) -> Iterator[None]:
    """Hold the build's lock; say so if another build has it."""
    _cache().mkdir(parents=True, exist_ok=True)
    with _lock_file(kernel.folder.name).open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            out.write(f"kvmpv: another build of the {kernel.variant} kernel runs; waiting for it\n")
            out.flush()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _lock_file(name: str) -> Path:
    return _cache() / f".{name}.lock"


def _build(kernel: Kernel, tarball: Path, out: IO[str]) -> None:
    _sweep()
    if shutil.disk_usage(_cache()).free < ROOM:
        raise HostError(
            f"a kernel build needs {ROOM >> 30} GiB in {_cache()}, and there is less",
            hint="free some, or set XDG_CACHE_HOME to a folder with room",
        )
    log = keyed.cache() / "logs" / f"kernel-{kernel.variant}.log"
    log.parent.mkdir(exist_ok=True)
    room = _cache() / f".{kernel.folder.name}.work"
    shutil.rmtree(room, ignore_errors=True)
    room.mkdir()
    try:
        with log.open("w", buffering=1) as sink:
            _compile(kernel, tarball, room, kernel_make.Job(sink, log, out))
        if wanted(kernel.variant, source=tarball) != kernel:
            raise HostError(
                "patches or configuration changed while the kernel was built", hint="build it again"
            )
        (room / "result").rename(kernel.folder)
    finally:
        shutil.rmtree(room, ignore_errors=True)


def _compile(kernel: Kernel, tarball: Path, room: Path, job: kernel_make.Job) -> None:
    tree, result = room / "source", room / "result"
    result.mkdir()
    fragments = _fragments(kernel.variant)
    with job.progress(f"guest kernel ({kernel.variant})", VARIANTS[kernel.variant][1]):
        kernel_source.unpack(tarball, tree, job)
        kernel_source.apply(PATCHES, tree, tarball, job)
        kernel_config.configure(fragments, tree, job)
        kernel_make.make(tree, job, "vmlinux", "bzImage")
    kernel_make.strip(tree / "vmlinux", result / "vmlinux", job)
    shutil.copy(tree / "arch/x86/boot/bzImage", result)
    shutil.copy(tree / "System.map", result)
    shutil.copy(tree / ".config", result / "config")
    _keep_checkpatch(tree, result / "checkpatch")


def _keep_checkpatch(tree: Path, into: Path) -> None:
    """Keep what tests look the series through with: to unpack it anew takes long."""
    into.mkdir()
    for name in ("checkpatch.pl", "const_structs.checkpatch", "spelling.txt"):
        shutil.copy(tree / "scripts" / name, into)


def _sweep() -> None:
    """Remove what builds that were killed have left, unless they are alive after all."""
    for room in _cache().glob(".*.work"):
        with _lock_file(room.name[1:-5]).open("w") as handle, suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(room, ignore_errors=True)
