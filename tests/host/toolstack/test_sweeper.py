"""What a killed owner's processes do not end by themselves, the sweeper ends."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from kvmpv.toolstack import rundir, sweeper

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a domain's folder that nobody has locked."""
    monkeypatch.setenv("KVMPV_RUN_DIR", str(tmp_path))
    monkeypatch.setattr(sweeper, "PATIENCE", 0.1)
    made = tmp_path / "kvmpv" / "web"
    made.mkdir(parents=True)
    (made / "lock").touch()
    return made


@pytest.fixture
def stopped(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Return a process of the domain that nothing but SIGKILL ends."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["sleep", "60"], stdout=log)
    process.send_signal(signal.SIGSTOP)
    yield process
    process.kill()
    process.wait()


def test_stopped_process_of_a_killed_owner_is_ended(
    folder: Path, stopped: subprocess.Popen[bytes]
) -> None:
    sweeper.main(gone(), str(folder))
    assert stopped.wait(1) == -signal.SIGKILL
    assert not folder.exists()


def test_process_of_an_owner_that_lives_is_not(
    folder: Path, stopped: subprocess.Popen[bytes]
) -> None:
    with (folder / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert rundir.processes_of(str(folder)) == []
        sweeper.main(gone(), str(folder))
    assert stopped.poll() is None
    assert folder.exists()


def test_process_whose_name_is_taken_again_is_ended(
    folder: Path, stopped: subprocess.Popen[bytes]
) -> None:
    (folder / "log").unlink()  # as the name's next owner does
    with (folder / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sweeper.main(gone(), str(folder))
    assert stopped.wait(1) == -signal.SIGKILL
    assert folder.exists()


def gone() -> int:
    """Return the id of a process that has ended."""
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid
