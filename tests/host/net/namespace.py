"""A network namespace for one test: what is made in it is gone with it."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from kvmpv.hostnet import links

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

P = ParamSpec("P")
T = TypeVar("T")

CLONE_NEWNET = 0x40000000
ETH_P_ALL = 3


def unshare() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    links.set_up("lo")


class Namespace:
    """A thread that lives in a network namespace of its own; so do its children."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, initializer=unshare)
        self._sockets: list[socket.socket] = []

    def call(self, what: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call something in the namespace, and return what it returns or raise what it raises."""
        return self._thread.submit(what, *args, **kwargs).result(60)

    def run(self, *argv: str) -> str:
        """Run a program in it; return what it says."""
        done = self.call(subprocess.run, argv, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (argv, done.stderr)
        return str(done.stdout)

    def ip(self, words: str) -> str:
        """Run ip with these words."""
        return self.run("ip", *words.split())

    def popen(self, *argv: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a program in it."""
        return self.call(lambda: subprocess.Popen(argv, **options))

    def packets(self, interface: str) -> socket.socket:
        """Return a socket that sends and receives whole frames on an interface."""

        def make() -> socket.socket:
            found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            found.bind((interface, 0))
            found.settimeout(5)
            return found

        self._sockets.append(self.call(make))
        return self._sockets[-1]

    def socket(self, family: int, kind: int) -> socket.socket:
        """Return a socket of the namespace."""
        found = self.call(socket.socket, family, kind)
        found.settimeout(5)
        self._sockets.append(found)
        return found

    def interfaces(self) -> set[str]:
        """Return the names of all interfaces."""
        return {name for _, name in self.call(socket.if_nameindex)}

    def close(self) -> None:
        """End it, its sockets too."""
        for one in self._sockets:
            one.close()
        self._thread.shutdown()

    def __enter__(self) -> Self:
        self.call(os.getpid)  # its start, or why it cannot be
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
