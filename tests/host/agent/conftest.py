"""Agents that run here: the program is an ordinary one."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from kvmpv.agent import build
from kvmpv.agent.client import Connection
from kvmpv.images import rootfs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Served:
    """One agent process, and the socket that leads to it."""

    def __init__(self, program: Path) -> None:
        self.sock, theirs = socket.socketpair()
        self.peers: list[Connection] = []
        with theirs:
            self.process = subprocess.Popen(
                [program, "--fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
            )

    def peer(self) -> Connection:
        """Come as a new peer on the same stream."""
        self.peers.append(Connection(self.sock.dup()))
        return self.peers[-1]

    def end(self) -> tuple[int, str]:
        """Hang up; return the agent's status and what it complained of."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        for peer in self.peers:
            peer.close()
        _, err = self.process.communicate(timeout=10)
        return self.process.returncode, err.decode()


@pytest.fixture(scope="session")
def sanitised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the agent so that it stops at its first wrong access."""
    program = tmp_path_factory.mktemp("agent") / "agent"
    build.compile_agent(program, "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    return program


@pytest.fixture
def served() -> Iterator[Served]:
    """Serve an agent as it is shipped."""
    found = Served(rootfs.agent())
    yield found
    assert found.end() == (0, "")


@pytest.fixture
def link(served: Served) -> Iterator[Connection]:
    """Connect to an agent as it is shipped."""
    with Connection(served.sock) as connection:
        yield connection
