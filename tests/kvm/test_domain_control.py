"""The control socket of a real domain: what clients send harms neither it nor its guest."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmpv.errors import KvmpvError
from tests.kvm.refguest import Guest

VERBS = ["status", "stats", "pause", "resume", "window", "vcpus", "sysrq", "\0", "é", ""]
LINE = st.lists(st.sampled_from(VERBS) | st.text(max_size=10), max_size=4).map(" ".join)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVMPV_RUN_DIR", str(tmp_path))
    return tmp_path / "kvmpv"


def connect(folder: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(next(folder.iterdir()) / "control"))
    client.settimeout(60)
    return client


def _send_for_ever(client: socket.socket) -> None:
    """Send requests, and read no answer."""
    while True:
        client.sendall(b"status\n" * 1000)


def test_any_lines_leave_the_domain_as_it_is(folder: Path) -> None:
    @settings(suppress_health_check=list(HealthCheck), database=None)
    @given(st.lists(LINE, min_size=1, max_size=5).map("\n".join), st.booleans())
    def send(lines: str, stay: bool) -> None:
        with connect(folder) as client:
            client.sendall(lines.encode() + b"\n")
            if stay:
                answers = b""
                while answers.count(b"\n") < lines.count("\n") + 1:
                    answers += client.recv(65536)
                assert {line.split(b" ")[0] for line in answers.splitlines()} <= {b"ok", b"error"}

    with Guest("requests") as guest:
        guest.expect("ready")
        send()
        guest.domain.resume()
        assert guest.domain.status() == {"state": "running", "vcpus": "1", "boots": "1"}
        guest.domain.request_poweroff()
        assert guest.end().kind == "poweroff"


def test_crowd_flood_and_silence_leave_room_for_the_owner(folder: Path) -> None:
    with Guest("requests") as guest:
        guest.expect("ready")
        crowd = [connect(folder) for _ in range(20)]
        for client in crowd[:8]:
            try:
                client.sendall(b"x" * 100_000)  # one line, and no end to it
            except OSError:
                pass  # hung up on, as it should be
        with pytest.raises(ConnectionError):
            _send_for_ever(crowd[8])
        for client in crowd:
            client.close()
        assert guest.domain.status()["state"] == "running"
        guest.domain.request_poweroff()
        assert guest.end().kind == "poweroff"


def test_domain_says_who_refuses_and_when_it_is_gone(folder: Path) -> None:
    with Guest("requests") as guest:
        guest.expect("ready")
        with pytest.raises(KvmpvError, match="unknown verb 'dance'"):
            guest.domain.control("dance")
        with pytest.raises(KvmpvError, match="1 to 1 are possible"):
            guest.domain.set_vcpus(2)
        assert guest.domain.stats()["boots"] == 1
        guest.domain.control("kill")
        assert guest.end().kind == "killed"
        with pytest.raises(KvmpvError, match="is gone"):
            guest.domain.status()
