"""Sockets between a patched guest and the host, and what becomes of them when their worker dies."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kvmpv
from tests.host.dom0.qemu import compiled

PEER = "/tmp/vsock_peer"
MUCH = 200_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vsock")


@pytest.fixture(scope="module")
def guest(folder: Path) -> Iterator[kvmpv.Domain]:
    program = compiled("vsock_peer").read_bytes()
    with kvmpv.Domain(memory=128 << 20, vsock=str(folder / "v"), rng="off") as domain:
        run(domain, f"cat > {PEER}; chmod +x {PEER}", stdin=program)
        yield domain


def run(domain: kvmpv.Domain, command: str, stdin: bytes = b"") -> None:
    done = domain.exec(command, stdin=stdin)
    assert (done.status, done.stderr) == (0, b"")


def serve(path: Path, answer: Callable[[bytes], bytes]) -> threading.Thread:
    """Answer one connection with what ``answer`` makes of all that it sent."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def run() -> None:
        peer, _ = listener.accept()
        came = b""
        while data := peer.recv(1 << 16):
            came += data
        peer.sendall(answer(came))
        peer.close()
        listener.close()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def call(path: Path, port: int) -> socket.socket:
    """Connect to a port of the guest, once something listens there."""
    for _ in range(100):
        caller = socket.socket(socket.AF_UNIX)
        caller.settimeout(20)
        try:
            caller.connect(str(path))
            caller.sendall(f"CONNECT {port}\n".encode())
            if caller.recv(100).startswith(b"OK "):
                return caller
        except OSError:
            pass
        caller.close()
        time.sleep(0.1)
    raise AssertionError(f"nobody answers at port {port}")


def test_guest_reaches_the_host(guest: kvmpv.Domain, folder: Path) -> None:
    thread = serve(folder / "v_7000", lambda came: came)
    said = guest.exec(f"{PEER} send 7000 {MUCH}")
    thread.join(20)
    assert str(said).strip() == f"{MUCH} came back"
    refused = guest.exec(f"{PEER} send 7001 1")
    assert refused.status == 1
    assert b"reset" in refused.stderr.lower()


def test_host_reaches_the_guest_before_and_after_its_workers_death(
    guest: kvmpv.Domain, folder: Path
) -> None:
    run(guest, f"(setsid {PEER} listen 22 > /tmp/said 2>&1; echo over >> /tmp/said) &")
    with call(folder / "v", 22) as caller:
        caller.sendall(b"hello guest")
        assert caller.recv(100) == b"hello guest"
        [device] = guest.devices()
        os.kill(int(device["pid"]), signal.SIGKILL)
        assert caller.recv(100) == b""
    for _ in range(100):
        if "over" in str(guest.exec("cat /tmp/said")):
            break
        time.sleep(0.1)
    assert str(guest.exec("cat /tmp/said")).split() == [
        *("listening", "read:", "Connection", "reset", "by", "peer", "over"),
    ]
    run(guest, f"setsid {PEER} listen 23 > /tmp/said 2>&1 &")
    with call(folder / "v", 23) as caller:
        caller.sendall(b"hello again")
        assert caller.recv(100) == b"hello again"
