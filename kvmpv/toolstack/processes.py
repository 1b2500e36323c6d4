"""Processes that serve devices: start them, name those that are missing, see how they ended."""

from __future__ import annotations

import _socket
import os
import select
import sys

from kvmpv.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Iterable
    from typing import Final
else:
    import _signal as signal  # signal itself imports enum, which takes a third of our start

PLACES: Final = ("/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/lib/qemu", "/usr/libexec")
WORKER: Final = os.path.join(os.path.dirname(os.path.dirname(__file__)), "dom0", "__main__.py")
S_IFMT: Final = 0o170000
S_IFSOCK: Final = 0o140000
LAST_LINES: Final = 4096  # bytes of a log that may hold why a process ended


def find(program: str, package: str) -> str:
    """Return the path of a program; raise ``HostError`` with the Debian package that has it."""
    for place in (*os.environ.get("PATH", "").split(":"), *PLACES):
        path = f"{place}/{program}"
        if place and os.access(path, os.X_OK) and not os.path.isdir(path):
            return path
    raise HostError(f"there is no {program} on this host", hint=f"apt install {package}")


def is_readable(fd: int, seconds: float) -> bool:
    """Say whether a descriptor becomes readable in time; a pidfd does when its process ends."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def tied(argv: list[str]) -> list[str]:
    """Return the command that ends with the thread that starts it, even if that is killed."""
    return [find("setpriv", "util-linux"), "--pdeathsig", "KILL", *argv]


def spawn(
    argv: list[str],
    fds: Iterable[int],
    log: int,
    *,
    stdin: int = -1,
    stdout: int = -1,
    more: dict[str, str] | None = None,
) -> int:
    """Start a program with descriptors to inherit and its output in a log; return its id.

    Its input is nothing unless ``stdin`` is a descriptor, its output the log unless ``stdout`` is
    one, its environment little more than ``more``.
    """
    nothing = (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0)
    actions = [
        (os.POSIX_SPAWN_DUP2, stdin, 0) if stdin >= 0 else nothing,
        (os.POSIX_SPAWN_DUP2, stdout if stdout >= 0 else log, 1),
        (os.POSIX_SPAWN_DUP2, log, 2),
        # A dup2 onto itself makes a descriptor inherited.
        *((os.POSIX_SPAWN_DUP2, fd, fd) for fd in fds),
    ]
    try:
        return os.posix_spawn(
            argv[0],
            argv,
            {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", **(more or {})},
            file_actions=actions,
            setsid=True,
            setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
        )
    except OSError as error:
        name = os.path.basename(argv[0])
        raise HostError(f"cannot start {name}: {error.strerror}", hint="see ulimit -a") from None


def python(program: str, words: Iterable[str]) -> list[str]:
    """Return the command that runs a program of ours, with nothing but the core loaded before."""
    return [sys.executable, "-I", "-S", program, *words]


def pair() -> tuple[_socket.socket, _socket.socket]:
    """Return the two ends of a stream."""
    return _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)


def listener(folder: int, name: str) -> tuple[_socket.socket, _socket.socket]:
    """Return a listening socket and a connection to it that waits to be accepted.

    For programs that take no connected socket. The socket is made in a folder that is open, for
    its path may be too long for an address, and has no name any more when this returns.
    """
    path = f"/proc/self/fd/{folder}/{name}"
    listening = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    connected = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        listening.bind(path)
        listening.listen(1)
        connected.connect(path)
    except OSError as error:
        listening.close()
        connected.close()
        raise HostError(f"cannot make {name}: {error.strerror}", hint="see df") from None
    finally:
        unlink(path)
    return listening, connected


def is_stale(path: str) -> bool:
    """Say whether a path is a socket that nobody listens at any more."""
    socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        socket.connect(path)
    except ConnectionRefusedError:
        return os.stat(path).st_mode & S_IFMT == S_IFSOCK
    except OSError:
        pass
    finally:
        socket.close()
    return False


def unlink(path: str) -> None:
    """Remove a file if it is there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def last_line(log: int, start: int) -> str:
    """Return the last line that a log has got since it had ``start`` bytes."""
    end = os.fstat(log).st_size
    start = max(start, end - LAST_LINES)
    try:
        text = os.pread(log, max(end - start, 0), start).decode("utf-8", "replace")
    except OSError:
        return ""  # a terminal, which has shown it
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    return lines[-1] if lines else ""


def describe_status(status: int) -> str:
    """Say in words how a process ended, of what waitpid returned."""
    code = os.waitstatus_to_exitcode(status)
    return f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
