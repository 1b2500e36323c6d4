"""Start a VMM: open what it is to have, hand it over, and let it run."""

from __future__ import annotations

import _socket
import os
import sys
import time

from kvmpv.abi import address_map
from kvmpv.errors import BadInput, HostError
from kvmpv.memory.memfd import create_memfd

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Final

    from kvmpv.toolstack.config import DomainConfig
else:
    import _signal as signal  # signal itself imports enum, which takes a third of our start

PROGRAM: Final = os.path.join(os.path.dirname(os.path.dirname(__file__)), "vmm", "__main__.py")
S_IFMT: Final = 0o170000
S_IFDIR: Final = 0o040000
S_IFREG: Final = 0o100000

KVM_REMEDIES: Final = {
    2: "load it with 'modprobe kvm_amd' or 'modprobe kvm_intel', or use scripts/devbox",
    13: "join the group that owns it: 'usermod -aG kvm USER', then log in again",
}


class Descriptors:
    """The descriptors that a VMM is to inherit, by the names that its orders have for them."""

    __slots__ = ("fds", "words")

    def __init__(self) -> None:
        self.fds: dict[str, int] = {}
        self.words: list[str] = []

    def give(self, key: str, fd: int) -> None:
        """Hand a descriptor over under a key; it is closed here by ``close``."""
        self.fds[key] = fd
        if key != "log":  # its output, not its orders
            self.words.append(f"{key}={fd}")

    def give_memory(self, size: int) -> None:
        """Hand guest memory over, in one sealed memfd."""
        fd = self.fds["memory"] = create_memfd("kvmpv-guest", size)
        offset = 0
        for gpa, length in address_map.regions(size):
            self.words.append(f"memory={gpa:#x}:{length:#x}:{fd}:{offset:#x}")
            offset += length

    def give_device(self, number: int, order: str, fd: int) -> None:
        """Hand the socket of a device's backend over; ``order`` is KIND[,key=value...]."""
        self.fds[f"device{number}"] = fd
        kind, comma, rest = order.partition(",")
        self.words.append(f"device={number},{kind},{fd}{comma}{rest}")

    def actions(self) -> list[tuple[int, int, int]]:
        """Return posix_spawn's file actions: a dup2 onto itself makes a descriptor inherited."""
        return [(os.POSIX_SPAWN_DUP2, fd, fd) for key, fd in self.fds.items() if key != "log"]

    def close(self) -> None:
        """Close them all on this side."""
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()


def open_kvm() -> int:
    """Open /dev/kvm; raise ``HostError`` with the remedy."""
    try:
        return os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        hint = KVM_REMEDIES.get(error.errno or 0, "see kvmpv doctor")
        raise HostError(f"cannot open /dev/kvm: {error.strerror}", hint=hint) from None


def open_file(what: str, path: str) -> int:
    """Open a file that a user named, for reading; raise ``BadInput`` for what is no file."""
    hint = f"give the path of a file: --{what}"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait
    except OSError as error:
        raise BadInput(f"cannot open the {what} {path}: {error.strerror}", hint=hint) from None
    kind = os.fstat(fd).st_mode & S_IFMT
    if kind != S_IFREG:
        os.close(fd)
        is_what = "is a folder" if kind == S_IFDIR else "is no plain file"
        raise BadInput(f"the {what} {path} {is_what}", hint=hint)
    return fd


def socket_pair() -> tuple[_socket.socket, int]:
    """Return our end of a stream and the descriptor of the other."""
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    return ours, theirs.detach()


def spawn(config: DomainConfig, descriptors: Descriptors, cmdline: str) -> int:
    """Start the VMM in a session of its own; return its process id."""
    log = descriptors.fds["log"]
    arguments = [
        sys.executable, "-I", "-S", PROGRAM,
        f"name={config.name}", f"vcpus={config.vcpus}", f"max_vcpus={config.max_vcpus}",
        f"cpu={config.cpu}", f"stats={int(config.stats or config.json)}",
        f"instance={os.urandom(16).hex()}", f"started={time.monotonic_ns()}",
        *descriptors.words, f"cmdline={cmdline}",
    ]  # fmt: skip
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
        (os.POSIX_SPAWN_DUP2, log, 1),
        (os.POSIX_SPAWN_DUP2, log, 2),
        *descriptors.actions(),
    ]
    return os.posix_spawn(
        sys.executable,
        arguments,
        {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
        file_actions=actions,
        setsid=True,
        setsigmask=(),
        setsigdef=(signal.SIGPIPE, signal.SIGINT, signal.SIGTERM),
    )
