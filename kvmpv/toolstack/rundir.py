"""A domain's folder while it runs: its lock, its control socket, its log. Gone when it ends."""

from __future__ import annotations

import _socket
import fcntl
import os

from kvmpv.errors import BadInput, HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

FILES: Final = ("control", "log", "end", "report", "lock")
SOCKET_PATH_MAX: Final = 107  # sockaddr_un


def root() -> str:
    """Return the folder that holds the folders of this user's domains."""
    if os.geteuid() == 0:
        return "/run/kvmpv"
    base = os.environ.get("XDG_RUNTIME_DIR")
    return f"{base}/kvmpv" if base else f"/tmp/kvmpv-{os.geteuid()}"


def crash_folder() -> str:
    """Return the folder that keeps crash reports after their domains are gone."""
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return f"{base}/kvmpv/crashes"


class RunDirectory:
    """The folder of one running domain; the lock in it is what makes a name taken."""

    __slots__ = ("_lock", "path")

    def __init__(self, name: str) -> None:
        self.path = f"{root()}/{name}"
        if len(os.fsencode(f"{self.path}/control")) > SOCKET_PATH_MAX:
            raise HostError(f"the path {self.path} is too long", hint="set XDG_RUNTIME_DIR")
        self._lock = -1
        while self._lock < 0:
            self._lock = self._take_lock(name)
        for stale in FILES[:-1]:
            self._unlink(stale)

    def _take_lock(self, name: str) -> int:
        path = f"{self.path}/lock"
        try:
            os.makedirs(self.path, mode=0o700, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            return -1  # its last owner removed the folder just now
        except OSError as error:
            raise HostError(
                f"cannot make {self.path}: {error.strerror}", hint="set XDG_RUNTIME_DIR"
            ) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise BadInput(
                f"a domain named {name!r} is running", hint="choose another --name, or end it first"
            ) from None
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
            raise HostError(f"cannot make {self.path}/control: {error.strerror}") from None
        listener.listen(8)
        return listener

    def connect(self) -> _socket.socket:
        """Return a connection to the domain's control socket."""
        connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        connection.connect(f"{self.path}/control")
        return connection

    def create(self, file: str) -> int:
        """Create a file of the folder; return its descriptor, open for reading and writing."""
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        return os.open(f"{self.path}/{file}", flags, 0o600)

    def close(self) -> None:
        """Remove the folder and free the name."""
        for file in FILES:
            self._unlink(file)
        try:
            os.rmdir(self.path)
        except OSError:
            pass  # somebody put something there: it is theirs
        os.close(self._lock)

    def _unlink(self, file: str) -> None:
        try:
            os.unlink(f"{self.path}/{file}")
        except FileNotFoundError:
            pass
