"""The images behind ``--disk``: looked at before anything is made, and locked while they are ours.

The lock is one byte far behind the end, of an open file description (fcntl(2), F_OFD_SETLK): it is
the domain's, for as long as that lives. The flock of the worker that does the I/O is another one,
which goes from worker to worker. Raw images are locked as QEMU locks them, too.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time

from kvmpv import ofd
from kvmpv.errors import BadInput, HostError
from kvmpv.hostdev import disks as host_disks
from kvmpv.hostdev.formats import HEAD, RAW, format_of
from kvmpv.toolstack.devices import DISK_MAX, SECTOR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from kvmpv.toolstack.devices import Device

S_IFMT: Final = 0o170000
S_IFDIR: Final = 0o040000
S_IFBLK: Final = 0o060000
S_IFREG: Final = 0o100000

QCOW2_LEAST: Final = 112  # bytes, QCowHeader
LOCK_BYTE: Final = 0x4B505600_0000  # no image is as long
# QEMU's (raw_apply_lock_bytes in its block/file-posix.c): a shared lock of the byte QEMU_USES + n
# for the permission n that one has, of QEMU_REFUSES + n for one that nobody else may have.
QEMU_USES: Final = 100
QEMU_REFUSES: Final = 200
QEMU_READ: Final = 0
QEMU_WRITE: Final = 1
QEMU_RESIZE: Final = 3
PATIENCE: Final = 3.0  # seconds for the last I/O of a domain that has just ended
PAUSE: Final = 0.01

SUFFIXES: Final = {
    ".qcow2": "qcow2",
    ".qcow": "qcow",
    ".qed": "qed",
    ".vmdk": "vmdk",
    ".vhdx": "vhdx",
    ".vhd": "vpc",
    ".vpc": "vpc",
    ".vdi": "vdi",
}


class Image:
    """An image that is there and free: its path, format and size, and the lock that keeps it so."""

    __slots__ = ("block", "fd", "format", "key", "path", "readonly", "size")

    def __init__(self, path: str, fd: int, readonly: bool) -> None:
        self.path = path
        self.fd = fd
        self.readonly = readonly
        state = os.fstat(fd)
        self.block = state.st_mode & S_IFMT == S_IFBLK
        self.key = (0, state.st_rdev) if self.block else (state.st_dev, state.st_ino)
        self.size = host_disks.size_of(fd)
        self.format = "raw"

    def grow(self, device: Device, size: int) -> None:
        """Give the file more bytes than ``measure`` told; raise ``BadInput`` where none can be."""
        if self.block or self.readonly:
            raise device.error("its size is not ours to change", "grow it yourself, then tell us")
        block = device.number("logical") or SECTOR
        if not self.size <= size <= DISK_MAX or size % block:
            raise device.error(
                f"{size} bytes are less than it has, no multiple of {block}, or too many",
                f"it has {self.size}",
            )
        try:
            os.truncate(self.path, size)
        except OSError as error:
            raise device.error(f"cannot grow: {error.strerror}", "see df") from None
        self.size = size

    def measure(self) -> None:
        """Look how large it is now: others grow it too."""
        self.size = host_disks.size_of(self.fd)

    def close(self) -> None:
        """Free the image for others."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def open_image(device: Device, taken: list[Image]) -> Image:
    """Open and lock the image of a disk; ``taken`` are those that the domain has already.

    Raises BadInput with what is wrong with it.
    """
    path = host_disks.by_id(device.text) if device.source == "id" else device.text
    path = os.path.realpath(path)
    # What the guest writes to a throw-away disk goes elsewhere.
    readonly = device.flag("readonly") or device.flag("snapshot")
    image = Image(path, _open(device, path, readonly), readonly)
    try:
        _check_twice(device, image, taken)
        image.format = _format(device, image)
        if image.format == "raw":
            _check_size(device, image)
        elif image.format == "qcow2" and image.size < QCOW2_LEAST:
            # qemu-storage-daemon 7.2 waits for the rest for ever, on io_uring.
            raise device.error("is too short to be qcow2", "it is cut off: take a copy of it")
        if not device.flag("force"):
            _check_use(device, image)
        _lock(device, image)
        if device.options["cache"] == "none":
            _check_direct(device, image)
    except BaseException:
        image.close()
        raise
    return image


def _open(device: Device, path: str, readonly: bool) -> int:
    flags = os.O_RDONLY if readonly else os.O_RDWR
    try:
        kind = os.stat(path).st_mode & S_IFMT
        if kind == S_IFDIR:
            raise device.error("is a folder", "folders go to a guest by --share or --root")
        if kind not in (S_IFREG, S_IFBLK):
            raise device.error("is neither a file nor a block device", "give an image's path")
        return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _refusal(device, path, error, readonly) from None


def _refusal(device: Device, path: str, error: OSError, readonly: bool) -> BadInput:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return device.error("there is no such image", f"make it: kvmpv disk create {path} 8G")
    writable = not readonly and os.access(path, os.R_OK)
    if writable and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return device.error("you may read it, but not write to it", "add readonly, or snapshot=on")
    return device.error(f"cannot be opened: {error.strerror}", "look at its rights: ls -l")


def _check_twice(device: Device, image: Image, taken: list[Image]) -> None:
    for other in taken:
        if other.key == image.key and not (other.readonly and image.readonly):
            raise device.error(
                "the same image twice", "two disks may share one if both are readonly"
            )


def _format(device: Device, image: Image) -> str:
    """Return the image's format.

    What a raw image begins with is its guest's to write, so a format that was not named has to show
    in the file's name too: else a guest could make its disk one that is backed by any file of the
    host.
    """
    said = device.text_of("format")
    if said != "auto":
        return said
    seen = format_of(os.pread(image.fd, HEAD, 0))
    named = SUFFIXES.get(os.path.splitext(image.path)[1].lower(), RAW)
    if seen != named:
        raise device.error(
            f"its content looks like {seen}, its name like {named}",
            f"say which it is: format={seen} or format={named}",
        )
    return seen


def _check_size(device: Device, image: Image) -> None:
    if not image.size:
        remedy = f"give it a size: kvmpv disk resize {image.path} 8G"
        raise device.error("is empty", "is there a medium in it?" if image.block else remedy)
    block = device.number("logical") or SECTOR
    if image.size % block:
        raise device.error(
            f"its {image.size} bytes are no multiple of {block}",
            f"kvmpv disk resize {image.path} {(image.size + block - 1) // block * block}",
        )


def _check_use(device: Device, image: Image) -> None:
    find = host_disks.use_of_device if image.block else host_disks.use_of_file
    if use := find(image.path):
        raise device.error(f"is in use by the host: {use}", "end that first; force takes it anyway")
    if image.block and _is_anothers(host_disks.file_behind(image.key[1]), image.readonly):
        raise device.error(
            "the file behind it is another domain's disk", "end it first; force takes it anyway"
        )


def _is_anothers(path: str, readonly: bool) -> bool:
    """Say whether a domain's lock on a file keeps us off; no file is nobody's."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return ofd.conflicts(fd, fcntl.F_RDLCK if readonly else fcntl.F_WRLCK, LOCK_BYTE, 1)
    except OSError:
        return False  # a file system without locks
    finally:
        os.close(fd)


def _lock(device: Device, image: Image) -> None:
    kind = fcntl.F_RDLCK if image.readonly else fcntl.F_WRLCK
    hint = "end it first; disks may share an image if all are readonly: kvmpv disk info names who"
    try:
        ofd.take(image.fd, kind, LOCK_BYTE, 1)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            return  # a file system without locks: the worker's flock will tell
        raise device.error("is another domain's disk", hint) from None
    if image.format == RAW:  # others are opened by QEMU's storage daemon
        _lock_as_qemu(device, image)
    deadline = time.monotonic() + PATIENCE
    while not _free_of_workers(image):
        if time.monotonic() > deadline:
            raise device.error("is locked by another process", hint)
        time.sleep(PAUSE)


def _lock_as_qemu(device: Device, image: Image) -> None:
    uses = (QEMU_READ,) if image.readonly else (QEMU_READ, QEMU_WRITE)
    refuses = (QEMU_WRITE, QEMU_RESIZE)
    hint = "end it first: kvmpv disk info names who; force takes it anyway"
    try:
        for byte in (*(QEMU_USES + n for n in uses), *(QEMU_REFUSES + n for n in refuses)):
            ofd.take(image.fd, fcntl.F_RDLCK, byte, 1)
    except OSError as error:  # QEMU's are all shared: it is somebody who has the whole file
        if device.flag("force"):
            return
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise device.error(f"cannot be locked: {error.strerror}", hint) from None
        raise device.error("is locked by another process", hint) from None
    if device.flag("force"):
        return
    for byte in (*(QEMU_REFUSES + n for n in uses), *(QEMU_USES + n for n in refuses)):
        if ofd.conflicts(image.fd, fcntl.F_WRLCK, byte, 1):
            raise device.error("is in use by QEMU", hint)


def _free_of_workers(image: Image) -> bool:
    """Say whether a worker could lock it: an ended one's flock goes with its last request."""
    how = fcntl.LOCK_SH if image.readonly else fcntl.LOCK_EX
    try:
        fcntl.flock(image.fd, how | fcntl.LOCK_NB)
        fcntl.flock(image.fd, fcntl.LOCK_UN)
    except OSError as error:
        return error.errno != errno.EWOULDBLOCK
    return True


def _check_direct(device: Device, image: Image) -> None:
    try:
        os.close(os.open(image.path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise HostError(f"{device.label}: {error.strerror}", hint="see dmesg") from None
        raise device.error(
            "its file system has no direct I/O", "take cache=writeback, or another file system"
        ) from None
