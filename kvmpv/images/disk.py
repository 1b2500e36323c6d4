"""Disk images on this host: make them, change their size, tell what they are."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kvmpv.errors import BadInput, HostError
from kvmpv.images import disk_use

if TYPE_CHECKING:
    from collections.abc import Iterator

SECTOR = 512
FORMATS = ("raw", "qcow2")
LARGEST = 1 << 62
_FULL = (errno.ENOSPC, errno.EDQUOT)


def create(path: Path, size: int, *, format: str = "raw", preallocate: bool = False) -> None:  # noqa: A002
    """Make a disk image of ``size`` bytes at ``path``, which must not exist.

    It takes no room before it is written to, unless it is to be preallocated. Whatever happens,
    there is a whole image afterwards or none. Raises BadInput and HostError.
    """
    _check_size(size)
    if format not in FORMATS:
        raise BadInput(f"cannot make images of format {format!r}", hint=f"raw or {FORMATS[1]}")
    check_new(path)
    with _failures(f"cannot make {path}"):
        if format == "raw":
            _create_raw(path, size, preallocate)
        else:
            _create_qcow2(path, size, preallocate)


def check_new(path: Path) -> None:
    """Raise BadInput if no new file can be made at ``path``."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        reason = f"cannot make {path}: {error.strerror}"
        raise BadInput(reason, hint="choose another place") from None
    else:
        what = "is a folder" if os.path.isdir(path) else "exists already"
        raise BadInput(f"{path} {what}", hint="give the path of a new file, or remove it first")
    folder = path.parent
    if not os.path.isdir(folder):
        raise BadInput(f"there is no folder {folder}", hint=f"mkdir -p {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        reason = f"cannot make {path}: the folder is not writable"
        raise BadInput(reason, hint="choose another folder")


def resize(path: Path, size: int, *, shrink: bool = False) -> list[str]:
    """Give the image at ``path`` another size in bytes; return who uses it, as ``disk_use`` says.

    Who has it open sees a grown one only when told to look. Raises BadInput and HostError.
    """
    _check_size(size)
    kind, old = _resizable(path)
    users = disk_use.users(path)
    if size < old and not shrink:
        raise BadInput(
            f"{path} has {old} bytes, and {size} are less",
            hint="--shrink cuts off what lies behind, for good",
        )
    if users and (size < old or kind != "raw"):
        raise BadInput(f"{path} is in use: {', '.join(users)}", hint="end that first")
    if size == old:
        return users
    with _failures(f"cannot resize {path}"):
        if kind == "raw":
            os.truncate(path, size)
        else:
            more = ["--shrink"] if size < old else []
            _qemu_img(
                *(f"cannot resize {path}", "resize", "-q", "-f", kind, *more),
                *(os.path.abspath(path), str(size)),  # a:b is a protocol to it, -a an option
            )
    return users


def _resizable(path: Path) -> tuple[str, int]:
    """Return format and size of what can be resized; raise BadInput for all else."""
    found = disk_use.inspect(path)
    if found.device:
        raise BadInput(f"{path} is a device", hint="only image files are resized here")
    if not os.access(path, os.W_OK):
        raise BadInput(f"{path} is not yours to write", hint="chmod, or ask its owner")
    if found.format not in FORMATS:
        raise BadInput(f"{path} is {found.format}", hint=f"only {' and '.join(FORMATS)} resize")
    return found.format, found.size


def _check_size(size: int) -> None:
    if size <= 0 or size > LARGEST:
        raise BadInput(f"{size} bytes are no size for a disk", hint="give 1G, say")
    if size % SECTOR:
        near = (size + SECTOR - 1) // SECTOR * SECTOR
        raise BadInput(f"{size} bytes are no multiple of {SECTOR}", hint=f"{near} are")


@contextmanager
def _failures(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.EFBIG, errno.EINVAL):
            reason = "its file system has no files as large"
        hint = "free some room" if error.errno in _FULL else "choose another folder"
        kind = BadInput if error.errno in (errno.EEXIST, errno.EFBIG, errno.EINVAL) else HostError
        raise kind(f"{what}: {reason}", hint=hint) from None


def _create_raw(path: Path, size: int, preallocate: bool) -> None:
    with unnamed(path) as fd:
        if preallocate:
            free = os.fstatvfs(fd)
            if free.f_bavail * free.f_frsize < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.posix_fallocate(fd, 0, size)
        else:
            os.ftruncate(fd, size)


def _create_qcow2(path: Path, size: int, preallocate: bool) -> None:
    how = "falloc" if preallocate else "off"
    options = ["-q", "-f", "qcow2", "-o", f"preallocation={how}"]
    with unnamed(path) as fd:
        what = f"cannot make {path}"
        _qemu_img(what, "create", *options, f"/proc/self/fd/{fd}", str(size), fd=fd)


@contextmanager
def unnamed(path: Path) -> Iterator[int]:
    """Give a new file without a name to write to; it gets the name ``path`` when that went well.

    Raises OSError, FileExistsError among them.
    """
    try:
        fd = os.open(path.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o644)
        name = ""
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL):
            raise
        fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.fchmod(fd, 0o644 & ~_mask())
    try:
        yield fd
        # With a folder's descriptor Python calls linkat(2), which alone follows the link in /proc.
        os.link(name or f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)
    finally:
        os.close(fd)
        if name:
            os.unlink(name)


def _mask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def copy(source: Path, target: int, *, size: int = 0) -> None:
    """Copy an image to an empty file: by reflink where the file system can, else with its holes.

    A larger ``size`` appends a hole. Raises OSError.
    """
    with open(source, "rb") as file:
        length = os.fstat(file.fileno()).st_size
        if not _reflink(file.fileno(), target):
            _copy_data(file.fileno(), target, length)
        os.ftruncate(target, max(length, size))


def _reflink(source: int, target: int) -> bool:
    import fcntl

    ficlone = 0x40049409  # linux/fs.h, FICLONE
    try:
        fcntl.ioctl(target, ficlone, source)
    except OSError:
        return False
    return True


def _copy_data(source: int, target: int, length: int) -> None:
    at = 0
    while at < length:
        try:
            start = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                return
            raise
        at = os.lseek(source, start, os.SEEK_HOLE)
        os.lseek(target, start, os.SEEK_SET)
        os.lseek(source, start, os.SEEK_SET)
        while start < at:
            done = os.sendfile(target, source, None, at - start)
            if not done:
                return
            start += done


def _qemu_img(what: str, *arguments: str, fd: int = -1) -> None:
    """Run qemu-img, for which a descriptor may be open; ``what`` begins the error."""
    program = shutil.which("qemu-img")
    if not program:
        raise HostError("no qemu-img", hint="install the Debian package qemu-utils")
    command = [program, *arguments]
    passed = [fd] if fd >= 0 else []
    done = subprocess.run(command, pass_fds=passed, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.splitlines() or ["no message"])[-1]
        reason = reason.removeprefix("qemu-img: ").removeprefix(f"/proc/self/fd/{fd}: ")
        raise HostError(f"{what}: {reason}", hint="qemu-img said so")
