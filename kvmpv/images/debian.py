"""A Debian root file system as a disk image: built once for each state of its inputs, and copied.

mmdebstrap makes the tree, mke2fs the ext4 image: no partition table, the guest's root is /dev/vda.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from kvmpv.errors import BadInput, HostError
from kvmpv.images import apt_sources, debian_tree, disk, keyed, rootfs
from kvmpv.images.kernel_make import Job

if TYPE_CHECKING:
    from collections.abc import Iterable

SUITE = "bookworm"
HOSTNAME = "debian"
SIZE = 2 << 30
_FORMAT = "1"
_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"
_PACKAGES = {"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "resize2fs": "e2fsprogs",
             "e2fsck": "e2fsprogs", "setpriv": "util-linux", "unshare": "util-linux"}  # fmt: skip
_MORTAL = ("setpriv", "--pdeathsig", "KILL")
_ISOLATION = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
_ROOM = 2 << 30  # bytes that a build needs while it runs
_BLOCK = 4096
_SPARE = 64 << 20
_PACKAGE_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_SUITE_NAME = re.compile(r"[a-z][a-z0-9.-]*")
_HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE)

# mmdebstrap's own lines, and what is going on from there on.
_STAGES = {
    "I: running apt-get update": "reading the archive",
    "I: downloading": "downloading",
    "I: extracting": "unpacking",
    "I: installing essential": "installing the base",
    "I: installing remaining": "installing",
    "I: cleaning": "cleaning up",
}
_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy", "APT_CONFIG")
_LINES_PER_PACKAGE = 2  # dpkg's: unpacking and setting up
_PACKAGES_OF_ALL = 120


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a Debian image is made from."""

    suite: str = SUITE
    packages: tuple[str, ...] = ()
    hostname: str = HOSTNAME

    def check(self) -> None:
        """Raise BadInput for what cannot be."""
        if not _SUITE_NAME.fullmatch(self.suite):
            raise BadInput(f"{self.suite!r} is no suite of Debian", hint="bookworm is one")
        if not _HOST_NAME.fullmatch(self.hostname):
            raise BadInput(
                f"{self.hostname!r} is no host name", hint="letters, digits and '-', at most 63"
            )
        for name in self.packages:
            if not _PACKAGE_NAME.fullmatch(name):
                raise BadInput(f"{name!r} is no name of a package", hint="--packages fio,iperf3")

    @property
    def path(self) -> Path:
        """Where the image is kept once it is built; the sources of packages do not count."""
        code = sorted(Path(__file__).parent.glob("debian*.py"))
        parts = [_FORMAT, self.suite, " ".join(self.packages), self.hostname]
        key = keyed.digest([*parts, *code, *rootfs.agent_parts()])
        return keyed.cache() / "debian" / f"{self.suite}-{key}.ext4"


def recipe(suite: str = SUITE, packages: Iterable[str] = (), hostname: str = HOSTNAME) -> Recipe:
    """Return a checked recipe; raises BadInput."""
    made = Recipe(suite, tuple(sorted(set(packages))), hostname)
    made.check()
    return made


def build(wanted: Recipe, say: IO[str], *, again: bool = False) -> Path:
    """Return the path of the cached image of a recipe, building it if there is none.

    It is small: ``place`` copies it to where it can grow and be written to. ``again`` builds it
    though there is one, so that newer packages get in. Raises HostError, each with the reason.
    """
    final = wanted.path
    if final.exists() and not again:
        return final
    _check_host()
    final.parent.mkdir(parents=True, exist_ok=True)
    with (final.parent / f".{final.stem}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say.write("kvmpv: another build of this image runs; waiting for it\n")
            say.flush()
            fcntl.flock(lock, fcntl.LOCK_EX)
            again = False
        if again or not final.exists():
            try:
                _build(wanted, final, say)
            except OSError as error:
                reason = error.strerror or str(error)
                raise HostError(f"cannot build the image: {reason}") from error
    return final


def check_output(output: Path, size: int) -> None:
    """Raise BadInput for a disk that no image can be copied to: ask before one is built."""
    if size % _BLOCK or not _SPARE <= size <= disk.LARGEST:
        raise BadInput(
            f"{size} bytes are no size for this image", hint=f"a multiple of {_BLOCK}, say 2G"
        )
    disk.check_new(output)


def place(image: Path, output: Path, size: int) -> None:
    """Copy an image of ``build`` to ``output`` as a disk of ``size`` bytes, its file system too.

    Raises BadInput and HostError; there is a whole image afterwards or none.
    """
    least = image.stat().st_size
    if size % _BLOCK or not least <= size <= disk.LARGEST:
        raise BadInput(
            f"{size} bytes are no size for this image", hint=f"at least {least >> 20}M, say 2G"
        )
    disk.check_new(output)
    try:
        with disk.unnamed(output) as draft:
            disk.copy(image, draft, size=size)
            _run([_program("resize2fs"), f"/proc/self/fd/{draft}"], draft)
    except OSError as error:
        raise HostError(f"cannot write {output}: {error.strerror or error}") from None


def listing() -> list[Path]:
    """Return every image in the cache, the newest first."""
    found = (keyed.cache() / "debian").glob("[!.]*.ext4")
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


# ---- The build ---------------------------------------------------------------------------


class _Bootstrap(Job):
    """mmdebstrap's run: its output names what it is at."""

    def _follow(self, child: subprocess.Popen[str], count: bool) -> None:
        assert child.stdout is not None
        for line in child.stdout:
            self._sink.write(line)
            for start, stage in _STAGES.items():
                if line.startswith(start):
                    self.say(stage)
            if count and self._bar and line.startswith(("Unpacking ", "Setting up ")):
                self._bar.advance(self._bar.task_ids[0])


def _check_host() -> None:
    gone = {package for tool, package in _PACKAGES.items() if not shutil.which(tool, path=_PATH)}
    if gone:
        names = " ".join(sorted(gone))
        raise HostError(
            "Debian images are made with packages that are missing",
            hint=f"install them: apt-get install {names}",
        )
    if os.geteuid() != 0:
        raise HostError(
            "Debian images are built as root: their files belong to many users",
            hint="sudo kvmpv image build debian",
        )


def _build(wanted: Recipe, final: Path, say: IO[str]) -> None:
    _sweep(final)
    if shutil.disk_usage(final.parent).free < _ROOM:
        raise HostError(
            f"an image build needs {_ROOM >> 30} GiB in {final.parent}, and there is less",
            hint="free some, or set XDG_CACHE_HOME to a folder with room",
        )
    log = keyed.cache() / "logs" / f"debian-{wanted.suite}.log"
    log.parent.mkdir(exist_ok=True)
    room = final.with_name(f".{final.name}.work")
    room.mkdir(mode=0o755)
    try:
        with log.open("w", buffering=1) as sink:
            job = _Bootstrap(sink, log, say)
            total = _LINES_PER_PACKAGE * _PACKAGES_OF_ALL
            with job.progress(f"Debian image ({wanted.suite})", total):
                _bootstrap(wanted, room, job)
                debian_tree.finish(room / "root", wanted.hostname, rootfs.agent())
                job.say("writing the file system")
                _write_file_system(room / "root", room / "new", job)
        (room / "new").rename(final)
    finally:
        shutil.rmtree(room, ignore_errors=True)


def _sweep(final: Path) -> None:
    """Remove what a killed build of this image has left: whoever calls this has its lock."""
    shutil.rmtree(final.with_name(f".{final.name}.work"), ignore_errors=True)


def _bootstrap(wanted: Recipe, room: Path, job: Job) -> None:
    sources = room / "guest.sources"
    sources.write_text(apt_sources.guest_sources(apt_sources.SOURCES, wanted.suite))
    proxies = [f"{name}={os.environ[name]}" for name in _PROXIES if name in os.environ]
    command = [
        # The build ends with whoever wanted it, at once: asked to, mmdebstrap goes on. So do its
        # mounts (this host's /dev/shm is one), which a sweep would walk into. Asked to end, the
        # shell does, and what it has started dies with it.
        *_MORTAL, "sh", "-c", '"$@"; exit $?', "sh", *_MORTAL, *_isolation(),
        "env", f"TMPDIR={room}", *proxies,
        "mmdebstrap", "--mode=root", "--variant=minbase", "--verbose",
        # apt would give its rights away to a user who cannot read our folder.
        "--aptopt=APT::Sandbox::User \"root\"",
        f"--include={','.join((*debian_tree.PACKAGES, *wanted.packages))}",
        wanted.suite, str(room / "root"), str(sources),
    ]  # fmt: skip
    if job.run(command, room, count=True):
        job.raise_if_full()
        raise HostError(f"mmdebstrap failed: {reason(job.tail(400))}", hint=f"log: {job.log}")


def _isolation() -> tuple[str, ...]:
    """Return what gives a command namespaces of its own.

    Nothing where root may not have any, as in a container: mmdebstrap mounts nothing there.
    """
    may = subprocess.run([*_ISOLATION, "true"], capture_output=True, check=False)
    return () if may.returncode else _ISOLATION


_REASONS = ("Could not resolve", "Temporary failure", "Could not connect", "Unable to connect",
            "Unable to locate package", "E: ")  # fmt: skip


def reason(text: str) -> str:
    """Return the line of a log that tells best why apt could not go on."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for wanted in _REASONS:
        for line in lines:
            if wanted in line:
                return line.removeprefix("E: ").removeprefix("W: ")
    return lines[-1] if lines else "it said nothing"


def _write_file_system(root: Path, into: Path, job: Job) -> None:
    """Make an ext4 image that holds ``root``, with little room to spare: copies grow."""
    used = files = 0
    for folder, _, names in os.walk(root):
        files += 1 + len(names)
        for name in names:
            used += (os.lstat(f"{folder}/{name}").st_size + _BLOCK) // _BLOCK * _BLOCK
    size = (used * 9 // 8 + files * 512 + _SPARE) >> 22 << 22
    with into.open("wb") as file:
        file.truncate(size)
    command = [
        _program("mke2fs"), "-q", "-F", "-t", "ext4", "-L", "debian", "-m", "1", "-i", "8192",
        # Nothing is left for the guest's kernel to do in the background.
        "-E", "lazy_itable_init=0,lazy_journal_init=0", "-J", "size=16",
        "-d", str(root), str(into),
    ]  # fmt: skip
    if job.run(command, into.parent):
        job.raise_if_full()
        raise HostError(f"mke2fs failed: {reason(job.tail(5))}", hint=f"log: {job.log}")


def _program(name: str) -> str:
    found = shutil.which(name, path=_PATH)
    if not found:
        raise HostError(f"no {name}", hint=f"install the Debian package {_PACKAGES[name]}")
    return found


def _run(command: list[str], fd: int) -> None:
    """Run a command, for which a descriptor is open."""
    done = subprocess.run(command, pass_fds=[fd], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.splitlines() or ["no message"])[-1]
        raise HostError(f"{Path(command[0]).name} failed: {reason}")
