"""How the reference guest's domain ends, and how it is ended."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from kvmpv.errors import KvmpvError
from tests.kvm import refguest
from tests.kvm.command import IN_BOX
from tests.kvm.refguest import Guest

CALLS = 100 if IN_BOX else 300


@pytest.fixture(autouse=True)
def crash_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def test_crash_has_the_guests_reason_and_a_report() -> None:
    end, guest = refguest.run("crash reason=because")
    assert (end.kind, end.message, end.status) == ("crash", "because", 125)
    assert guest.failures == []
    report = Path(end.report).read_text()
    assert "because" in report
    assert "rip=" in report
    assert "ok crash-efault" in report  # the last lines of the console


def test_crash_needs_no_reason() -> None:
    end, guest = refguest.run("crash")
    assert end.kind == "crash"
    assert guest.failures == []


def test_triple_fault_is_the_guests_crash() -> None:
    end, _ = refguest.run("triple")
    assert (end.kind, end.status) == ("triple-fault", 125)
    # SVM leaves no state behind a shutdown: KVM has put the vCPU into the one after INIT.
    report = Path(end.report).read_text().replace("<", "").replace(">", "")
    assert "0f 0b" in report or "rip=000000000000fff0" in report  # ud2


@pytest.mark.parametrize("test", ["spin", "halt", "userspin"])
def test_guest_that_does_not_listen_is_ended(test: str) -> None:
    with Guest(test) as guest:
        guest.expect("ing")
        pid = guest.domain.pid
        end = guest.domain.poweroff(timeout=0.2)
        assert end.kind == "killed"
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_pause_stops_it_and_resume_lets_it_go_on() -> None:
    with Guest("exec") as guest:
        guest.expect("ok echo-port-bind")
        guest.domain.pause()
        guest.domain.exec_port.sendall(b"while it is paused")
        time.sleep(0.1)
        assert guest.domain.status()["state"] == "paused"
        assert guest.exec_output == b""
        guest.domain.resume()
        assert guest.expect_exec(18) == b"while it is paused"


def test_pause_and_resume_while_vcpus_race_and_come_and_go() -> None:
    with Guest(f"race,upstorm n={CALLS}", vcpus=4) as guest:
        guest.expect("race-up")
        refused = ""
        try:
            for _ in range(10):
                guest.domain.pause()
                guest.domain.stats()
                guest.domain.resume()
        except KvmpvError as error:
            refused = str(error)
        assert not refused or "is gone" in refused  # it may have ended by then
        end = guest.end()
    assert end.kind == "poweroff"
    assert guest.failures == []
    assert f"upstorm {CALLS} failed 0" in guest.text
