"""A domain's folder while it runs: its lock, its control socket, its log. Gone when it ends."""

from __future__ import annotations

import _socket
import fcntl
import os
import time

from kvmpv.errors import BadInput, HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

FILES: Final = ("control", "log", "end", "report", "lock")
DEVICE: Final = "device-"  # what the names of all that belongs to a device begin with
SOCKET_PATH_MAX: Final = 107  # sockaddr_un
KEPT_REPORTS: Final = 64  # a guest that crashes for ever must not fill the disk
REMEDY: Final = "set KVMPV_RUN_DIR to a folder of yours"

# Whoever sweeps holds another's lock for a moment: that alone does not make a name taken.
ATTEMPTS: Final = 20
PAUSE: Final = 0.005  # seconds


def root() -> str:
    """Return the folder that holds the folders of this user's domains."""
    if chosen := os.environ.get("KVMPV_RUN_DIR"):
        return f"{chosen}/kvmpv"  # all in it is ours, and may be swept
    if os.geteuid() == 0:
        return "/run/kvmpv"
    base = os.environ.get("XDG_RUNTIME_DIR")
    return f"{base}/kvmpv" if base else f"/tmp/kvmpv-{os.geteuid()}"


def crash_folder() -> str:
    """Return the folder that keeps crash reports after their domains are gone."""
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return f"{base}/kvmpv/crashes"


def keep_report(name: str, text: str) -> str:
    """Write a domain's crash report, and remove the oldest beyond KEPT_REPORTS.

    Returns its path, or nothing if that fails: a full disk must not hide how a domain ended.
    """
    folder = crash_folder()
    path = f"{folder}/{name}-{time.strftime('%Y%m%dT%H%M%S')}.txt"
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        reports = [one for one in os.listdir(folder) if one.endswith(".txt")]
        reports.sort(key=lambda one: one.rpartition("-")[2])  # by time
        for old in reports[:-KEPT_REPORTS]:
            _unlink(f"{folder}/{old}")
    except OSError:
        return ""
    return path


def sweep() -> None:
    """Remove the folders of domains whose owners were killed before they could."""
    base = root()
    try:
        names = os.listdir(base)
    except OSError:
        return
    for name in names:
        path = f"{base}/{name}"
        lock = _take_over(path)
        if lock >= 0:
            _remove(path)
            os.close(lock)
        elif not os.path.exists(f"{path}/lock"):
            _remove_empty(path)  # its owner was killed before it had a lock, or it is no domain's


def processes_of(path: str) -> list[int]:
    """Return pidfds of the processes of the domain that had the folder ``path`` and has no owner.

    They are told by their output, which goes to the folder's logs.
    """
    lock = _take_over(path)
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            pidfd = os.pidfd_open(int(name))
        except OSError:
            continue  # it has just ended
        try:
            output = os.readlink(f"/proc/{name}/fd/1")
        except OSError:
            output = ""  # another user's
        # What another owner has removed was a dead one's, even if the folder is taken again.
        orphan = lock >= 0 or output.endswith(" (deleted)")
        if orphan and output.startswith(f"{path}/"):
            found.append(pidfd)
        else:
            os.close(pidfd)
    if lock >= 0:
        os.close(lock)
    return found


def _take_over(path: str) -> int:
    """Return the locked lock of a folder whose owner is gone, or -1."""
    try:
        lock = os.open(f"{path}/lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return -1
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_nlink:  # else the folder is another's by now
            return lock
    except OSError:
        pass  # it runs
    os.close(lock)
    return -1


class RunDirectory:
    """The folder of one running domain; the lock in it is what makes a name taken."""

    __slots__ = ("_lock", "path")

    def __init__(self, name: str) -> None:
        self.path = f"{root()}/{name}"
        if len(os.fsencode(f"{self.path}/control")) > SOCKET_PATH_MAX:
            raise HostError(f"the path {self.path} is too long", hint=REMEDY)
        self._lock = -1
        try:
            self._take(name)
        except BaseException:  # Ctrl-C too
            if self._lock >= 0:
                self.close()
            raise

    def _take(self, name: str) -> None:
        for _ in range(ATTEMPTS):
            self._lock = self._take_lock()
            if self._lock >= 0:
                break
            time.sleep(PAUSE)
        else:
            raise BadInput(
                f"a domain named {name!r} is running", hint="choose another --name, or end it first"
            )
        for stale in FILES[:-1]:
            _unlink(f"{self.path}/{stale}")
        _remove_devices(self.path)

    def _take_lock(self) -> int:
        """Return the descriptor of the lock, or -1 when another has it."""
        try:
            os.makedirs(self.path, mode=0o700, exist_ok=True)
            if os.stat(root()).st_uid != os.geteuid():
                raise HostError(f"{root()} belongs to somebody else", hint=REMEDY)
            fd = os.open(f"{self.path}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            return -1  # its last owner removed the folder just now
        except OSError as error:
            raise HostError(f"cannot make {self.path}: {error.strerror}", hint=REMEDY) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return -1
        if os.fstat(fd).st_nlink == 0:  # the lock of an owner that has ended
            os.close(fd)
            return -1
        return fd

    def listen(self) -> _socket.socket:
        """Return the control socket, listening."""
        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            listener.bind(f"{self.path}/control")
        except OSError as error:
            listener.close()
            path = f"{self.path}/control"
            raise HostError(f"cannot make {path}: {error.strerror}", hint=REMEDY) from None
        listener.listen(8)
        return listener

    def connect(self) -> _socket.socket:
        """Return a connection to the domain's control socket."""
        connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            connection.connect(f"{self.path}/control")
        except OSError:
            connection.close()
            raise
        return connection

    def create(self, file: str) -> int:
        """Create a file of the folder; return its descriptor, open for reading and writing."""
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        try:
            return os.open(f"{self.path}/{file}", flags, 0o600)
        except OSError as error:
            path = f"{self.path}/{file}"
            raise HostError(f"cannot make {path}: {error.strerror}", hint=REMEDY) from None

    def close(self) -> None:
        """Remove the folder and free the name."""
        _remove(self.path)
        os.close(self._lock)


def _remove(path: str) -> None:
    _remove_devices(path)
    for file in FILES:
        _unlink(f"{path}/{file}")
    _remove_empty(path)


def _remove_devices(path: str) -> None:
    """Remove what the devices' backends have there."""
    try:
        names = os.listdir(path)
    except OSError:
        return
    for name in names:
        if name.startswith(DEVICE):
            _unlink(f"{path}/{name}")


def _remove_empty(path: str) -> None:
    try:
        os.rmdir(path)
    except OSError:
        pass  # somebody put something there: it is theirs


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
