"""Who uses which network: one file for each card that is attached, locked while its user lives.

A user that is killed leaves its file, but not the lock on it: whoever comes next sees that, and
takes away what it left. All of the folder changes under one lock.
"""

from __future__ import annotations

import fcntl
import os

from kvmpv import ofd
from kvmpv.errors import HostError
from kvmpv.hostnet import tools

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, Self

RECORD: Final = "network"  # what says, in the folder, what the NAT network consists of
REMEDY: Final = "set KVMPV_RUN_DIR to a folder of yours"


def folder() -> str:
    """Return the folder of the networks of this network namespace."""
    if chosen := os.environ.get("KVMPV_RUN_DIR"):
        base = chosen
    elif os.geteuid() == 0:
        base = "/run"
    else:
        base = os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/kvmpv-{os.geteuid()}"
    # Beside the domains' folders, not among them: those are swept by who knows only domains.
    return f"{base}/kvmpv-net/{os.stat('/proc/thread-self/ns/net').st_ino}"


class Lock:
    """The lock on a folder of networks, which is made if it is not there."""

    __slots__ = ("_fd", "path")

    def __init__(self) -> None:
        self.path = folder()
        self._fd = -1

    def __enter__(self) -> Self:
        try:
            while (fd := self._locked()) < 0:
                pass  # removed by who was its last user, just now
            self._fd = fd
            # Not before: who had the lock may have removed it.
            _make(f"{self.path}/users")
        except OSError as error:
            raise HostError(f"cannot use {self.path}: {error.strerror}", hint=REMEDY) from None
        tools.locks.add(fd)
        return self

    def _locked(self) -> int:
        """Return the lock once it is ours; -1 where it is a folder's that is gone."""
        os.makedirs(os.path.dirname(os.path.dirname(self.path)), exist_ok=True)
        try:
            _make(os.path.dirname(self.path))
            _make(self.path)
            fd = os.open(f"{self.path}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            return -1
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            return fd
        os.close(fd)
        return -1

    def __exit__(self, *_: object) -> None:
        """Leave; the folder goes when nobody uses it, and nothing is recorded that is to go."""
        if not os.listdir(f"{self.path}/users") and not os.path.exists(f"{self.path}/{RECORD}"):
            for name in os.listdir(self.path):  # half-written files of one that was killed too
                if name != "lock":
                    _remove(f"{self.path}/{name}")
            # From here on another may make it anew, and that stays: it is not empty then.
            for path in (f"{self.path}/lock", self.path, os.path.dirname(self.path)):
                _remove(path)
        tools.locks.discard(self._fd)
        os.close(self._fd)
        self._fd = -1


class User:
    """One card in use, as its file says it: ``key=value`` lines."""

    __slots__ = ("domain", "fd", "index", "values")

    def __init__(self, domain: str, index: int, values: dict[str, str], fd: int = -1) -> None:
        self.domain = domain
        self.index = index
        self.values = values
        self.fd = fd

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"{self.domain}:{self.index}"

    def __getitem__(self, key: str) -> str:
        return self.values.get(key, "")


def register(path: str, user: User) -> None:
    """Write a user's file into the folder ``path`` and keep it locked; the caller has the lock.

    Written again, it says what is new.
    """
    if user.fd < 0:
        # Locked before anybody sees it. Nobody has this kind of lock who may not write to the file.
        new = f"{path}/{user.file}.new"
        user.fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        ofd.take(user.fd, fcntl.F_WRLCK)
        os.fchmod(user.fd, 0o644)
        os.rename(new, f"{path}/users/{user.file}")
    text = "".join(f"{key}={value}\n" for key, value in user.values.items())
    os.pwrite(user.fd, text.encode(), 0)
    os.ftruncate(user.fd, len(text.encode()))


def leave(user: User) -> None:
    """Be a user no more: its file stays, and says what is to be taken away."""
    os.close(user.fd)
    user.fd = -1


def forget(path: str, gone: list[User]) -> None:
    """Remove the files of users that have left nothing; the caller has the lock."""
    for user in gone:
        _remove(f"{path}/users/{user.file}")


def living(path: str) -> tuple[list[User], list[User]]:
    """Read the users of the folder ``path``: those that live, and those that left or were killed.

    Without the lock the latter may be about to begin.
    """
    alive: list[User] = []
    dead: list[User] = []
    try:
        names = sorted(os.listdir(f"{path}/users"))
    except FileNotFoundError:
        names = []
    for name in names:
        found = _read(f"{path}/users/{name}", name)
        if found is None:
            continue
        user, lives = found
        (alive if lives else dead).append(user)
    return alive, dead


def _read(path: str, name: str) -> tuple[User, bool] | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        text = os.read(fd, 1 << 16).decode(errors="replace")
        lives = ofd.conflicts(fd, fcntl.F_RDLCK)
    finally:
        os.close(fd)
    values = {}
    for line in text.splitlines():
        key, _, value = line.partition("=")
        values[key] = value
    domain, _, index = name.rpartition(":")
    return User(domain, int(index) if index.isdigit() else 0, values), lives


def _make(path: str) -> None:
    """Make a folder that all may read, dnsmasq's user too, unless it is there."""
    try:
        os.mkdir(path)
    except FileExistsError:
        return
    os.chmod(path, 0o755)  # whatever our umask is


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except IsADirectoryError:
        try:
            os.rmdir(path)
        except OSError:
            pass  # somebody is quicker, or uses it
    except FileNotFoundError:
        pass
