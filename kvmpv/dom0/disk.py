"""What is behind a disk: an image file or a block device, opened, fenced and measured.

The fence: requests of a worker that was killed go on in the kernel, and would overwrite what its
successor wrote. So a worker locks the open file description that its I/O goes through (flock(2)),
which the kernel keeps, lock and all, until the last request on it has ended; and it starts no
request before it has that lock.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct

from kvmpv.dataplane import block
from kvmpv.errors import BadInput, HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

SECTOR: Final = 512
PAGE: Final = 4096
CACHES: Final = ("none", "writeback", "unsafe")
OVERLAYS: Final = "/var/tmp"

S_IFMT: Final = 0o170000
S_IFDIR: Final = 0o040000
S_IFBLK: Final = 0o060000
S_IFREG: Final = 0o100000

# linux/fs.h
BLKSSZGET: Final = 0x1268
BLKIOMIN: Final = 0x1278
BLKIOOPT: Final = 0x1279
BLKPBSZGET: Final = 0x127B
BLKGETSIZE64: Final = 0x80081272


class Image:
    """An open image. Nothing may be read or written before ``lock`` has said yes."""

    __slots__ = (
        *("_force", "_path", "direct", "fd", "locked", "logical", "memory_align", "offset_align"),
        *("optimal", "physical", "read_only", "special"),
    )

    def __init__(self, path: str, *, read_only: bool, direct: bool, force: bool = False) -> None:
        """Open ``path``; raise ``BadInput`` where it cannot be a disk, or has no direct I/O."""
        self._path = path
        self._force = force
        self.read_only = read_only
        self.direct = direct
        self.locked = False
        self.fd = -1
        self.fd = self._open(0)
        try:
            kind = os.fstat(self.fd).st_mode & S_IFMT
            if kind not in (S_IFREG, S_IFBLK):
                raise BadInput(f"{path} is neither a file nor a block device")
            self.special = kind == S_IFBLK
            self._measure()
        except BaseException:
            self.close()
            raise

    def _open(self, more: int) -> int:
        flags = os.O_RDONLY if self.read_only else os.O_RDWR
        flags |= os.O_DIRECT if self.direct else 0
        try:
            return os.open(self._path, flags | more | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.EINVAL and self.direct:
                hint = "take cache=writeback, or another file system"
                raise BadInput(f"{self._path}: no direct I/O there", hint=hint) from None
            if error.errno == errno.EBUSY:
                raise
            raise BadInput(f"{self._path}: {error.strerror}") from None

    def _measure(self) -> None:
        """Learn block sizes and alignments; those of a file are its file system's."""
        self.optimal = 0
        if self.special:
            self.logical = _number(self.fd, BLKSSZGET)
            self.physical = _number(self.fd, BLKPBSZGET)
            self.optimal = _number(self.fd, BLKIOOPT)
        else:
            self.logical = SECTOR
            self.physical = max(SECTOR, min(os.fstat(self.fd).st_blksize, PAGE))
        self.memory_align = self.offset_align = 1
        if not self.direct:
            return
        memory, offset = block.direct_alignment(self.fd)
        if not offset:  # before Linux 6.1, or a file system that does not say
            memory = offset = max(self.logical, _logical_below(os.fstat(self.fd).st_dev))
        self.memory_align, self.offset_align = memory, offset
        self.logical = max(self.logical, offset)
        self.physical = max(self.physical, self.logical)

    # ---- the fence

    def lock(self) -> bool:
        """Try to take the lock; False while a dead predecessor's requests still have it.

        Raise ``BadInput`` when somebody who lives has it.
        """
        if self.locked:
            return True
        how = fcntl.LOCK_SH if self.read_only else fcntl.LOCK_EX
        try:
            fcntl.flock(self.fd, how | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK:
                raise HostError(f"{self._path} cannot be locked: {error.strerror}") from None
            self._refuse_the_living()
            return False
        self.locked = self._claim(how)
        return self.locked

    def _claim(self, how: int) -> bool:
        """Keep everybody else off a block device, the host's own file systems too."""
        if not self.special or self.read_only or self._force:
            return True
        try:
            claimed = self._open(os.O_EXCL)
        except OSError:
            hint = "end that first; force takes it anyway"
            raise BadInput(f"{self._path} is in use by the host", hint=hint) from None
        # The lock has to be on the description that the I/O goes through.
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        os.close(self.fd)
        self.fd = claimed
        try:
            fcntl.flock(self.fd, how | fcntl.LOCK_NB)
        except OSError:
            return False  # somebody was quicker: the next try tells
        return True

    def _refuse_the_living(self) -> None:
        for pid in _holders(self.fd):
            if pid != os.getpid() and (name := _alive(pid)):
                raise BadInput(f"{self._path} is in use by {name}", hint="end that first")

    # ---- size

    def size(self) -> int:
        """Return the size in bytes, now. Raise ``BadInput`` unless it is a number of sectors."""
        if self.special:
            buffer = bytearray(8)
            fcntl.ioctl(self.fd, BLKGETSIZE64, buffer)
            return int.from_bytes(buffer, "little")
        size = os.fstat(self.fd).st_size
        if not size:
            raise BadInput(f"{self._path} is empty")
        if size % self.logical:
            raise BadInput(f"{self._path}: its {size} bytes are no multiple of {self.logical}")
        return size

    def close(self) -> None:
        """Let go of it; the lock goes with the last request."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Overlay:
    """Where a throw-away disk's writes go: a sparse file, a bit for each sector behind the data.

    The bits are mapped, so a successor that is handed the same file finds what was written.
    """

    __slots__ = ("bitmap", "fd", "locked")

    def __init__(self, fd: int, size: int) -> None:
        """Take an open file, or make one without a name where ``fd`` is -1."""
        self.fd = fd if fd >= 0 else _unnamed()
        self.locked = False
        data = (size + PAGE - 1) // PAGE * PAGE
        bits = (size // SECTOR + 7) // 8
        length = (bits + PAGE - 1) // PAGE * PAGE
        try:
            # All of the bits' room, at once: a mapped page for which there is none is a SIGBUS.
            os.posix_fallocate(self.fd, data, length)
        except OSError as error:
            os.close(self.fd)
            raise HostError(f"no room for a throw-away disk: {error.strerror}") from None
        # A second worker at once would be one domain's own, and a bug: the lock is for the fence.
        self.bitmap = mmap.mmap(self.fd, length, offset=data)

    def lock(self) -> bool:
        """Try to take the lock, on a description of our own that the writes go through."""
        if self.locked:
            return True
        fresh = os.open(f"/proc/self/fd/{self.fd}", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(fresh, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fresh)
            return False
        os.dup2(fresh, self.fd, inheritable=False)
        os.close(fresh)
        self.locked = True
        return True

    def close(self) -> None:
        """Let go of it."""
        os.close(self.fd)
        self.bitmap.close()


def _unnamed() -> int:
    try:
        return os.open(OVERLAYS, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(f"no room for a throw-away disk in {OVERLAYS}: {error.strerror}") from None


def _number(fd: int, request: int) -> int:
    buffer = bytearray(4)
    fcntl.ioctl(fd, request, buffer)
    value: int = struct.unpack("I", buffer)[0]
    return value


def _logical_below(device: int) -> int:
    """Return the logical block size of the disk below a file system, as well as can be told."""
    base = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"
    for path in (f"{base}/queue/logical_block_size", f"{base}/../queue/logical_block_size"):
        try:
            with open(path, "rb") as file:
                return int(file.read())
        except (OSError, ValueError):
            continue
    return SECTOR


def _holders(fd: int) -> list[int]:
    """Return who took the locks on a file, as far as /proc/locks tells."""
    state = os.fstat(fd)
    device = f"{os.major(state.st_dev):02x}:{os.minor(state.st_dev):02x}:{state.st_ino}"
    found = []
    try:
        with open("/proc/locks", "rb") as file:
            for line in file.read().decode().splitlines():
                words = line.split()
                # 1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF; a waiting one has -> in it
                if words[1] == "FLOCK" and words[5] == device:
                    found.append(int(words[4]))
    except (OSError, ValueError, IndexError):
        pass
    return found


def _alive(pid: int) -> str:
    """Say what a process is, or nothing when it is dead but for what the kernel does for it."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state = file.read().rpartition(b")")[2].split()[0]
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().decode("utf-8", "replace").split("\0")
    except (OSError, IndexError):
        return ""
    if state in (b"Z", b"X") or not words[0]:
        return ""
    for word in words:
        if word.startswith("name=") and any("kvmpv/dom0" in other for other in words):
            return f"domain {word.removeprefix('name=')}"
    return f"process {pid} ({os.path.basename(words[0])})"
