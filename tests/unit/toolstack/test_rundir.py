"""A domain's folder: one owner at a time, and what killed owners left does not last."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from kvmpv.errors import BadInput, HostError
from kvmpv.toolstack import rundir
from kvmpv.toolstack.rundir import RunDirectory


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVMPV_RUN_DIR", str(tmp_path))
    monkeypatch.setattr(rundir, "PAUSE", 0.0)
    return tmp_path / "kvmpv"


def leave_behind(root: Path, name: str) -> Path:
    """Make what an owner that was killed leaves."""
    folder = root / name
    folder.mkdir(parents=True)
    for file in rundir.FILES:
        (folder / file).touch()
    return folder


def test_folder_is_for_its_owner_alone_and_goes_with_it(root: Path) -> None:
    directory = RunDirectory("one")
    assert (root / "one").stat().st_mode & 0o777 == 0o700
    os.close(directory.create("log"))
    directory.listen().close()
    assert sorted(os.listdir(root / "one")) == ["control", "lock", "log"]
    directory.close()
    assert list(root.iterdir()) == []


def test_name_is_taken_until_its_owner_ends(root: Path) -> None:
    first = RunDirectory("one")
    with pytest.raises(BadInput, match="a domain named 'one' is running") as caught:
        RunDirectory("one")
    assert caught.value.hint
    assert (root / "one" / "lock").exists()
    other = RunDirectory("two")
    first.close()
    RunDirectory("one").close()
    other.close()


def test_name_of_a_killed_owner_is_free_and_its_files_are_gone(root: Path) -> None:
    leave_behind(root, "one")
    directory = RunDirectory("one")
    assert os.listdir(root / "one") == ["lock"]
    directory.close()


def test_sweep_removes_what_killed_owners_left_and_nothing_else(root: Path) -> None:
    running = RunDirectory("running")
    leave_behind(root, "stale")
    (root / "empty").mkdir()
    foreign = root / "foreign"
    foreign.mkdir()
    (foreign / "file").touch()
    mixed = leave_behind(root, "mixed")
    (mixed / "mine").touch()
    rundir.sweep()
    assert sorted(path.name for path in root.iterdir()) == ["foreign", "mixed", "running"]
    assert os.listdir(mixed) == ["mine"]
    assert os.listdir(root / "running") == ["lock"]
    running.close()


def test_sweep_without_a_folder_does_nothing(root: Path) -> None:
    rundir.sweep()
    assert not root.exists()


def test_lock_of_a_removed_folder_is_not_taken_for_ours(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its owner ends between our opening of the lock and our locking it.
    owner = RunDirectory("one")
    real = fcntl.flock
    ended: list[bool] = []

    def flock(fd: int, how: int) -> None:
        if not ended:
            ended.append(True)
            owner.close()
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    directory = RunDirectory("one")
    assert (root / "one" / "lock").exists()
    directory.close()


def test_no_descriptor_is_lost(root: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    directory = RunDirectory("one")
    for _ in range(3):
        with pytest.raises(BadInput):
            RunDirectory("one")
    rundir.sweep()
    directory.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_folder_that_cannot_be_made_is_said(root: Path) -> None:
    root.parent.mkdir(exist_ok=True)
    root.write_text("a file")
    with pytest.raises(HostError, match="cannot make") as caught:
        RunDirectory("one")
    assert "KVMPV_RUN_DIR" in caught.value.hint


def test_folder_of_somebody_else_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(HostError, match="belongs to somebody else"):
        RunDirectory("one")


def test_path_that_no_socket_can_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMPV_RUN_DIR", "/tmp/" + "x" * 100)
    with pytest.raises(HostError, match="too long"):
        RunDirectory("one")


@pytest.mark.parametrize(
    ("user", "variables", "expected"),
    [
        (0, {}, "/run/kvmpv"),
        (0, {"XDG_RUNTIME_DIR": "/run/user/0"}, "/run/kvmpv"),
        (7, {"XDG_RUNTIME_DIR": "/run/user/7"}, "/run/user/7/kvmpv"),
        (7, {}, "/tmp/kvmpv-7"),
        (7, {"XDG_RUNTIME_DIR": "/run/user/7", "KVMPV_RUN_DIR": "/mine"}, "/mine/kvmpv"),
    ],
)
def test_root(
    user: int, variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XDG_RUNTIME_DIR", "KVMPV_RUN_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert rundir.root() == expected


def test_crash_reports_are_kept_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(rundir, "KEPT_REPORTS", 3)
    folder = Path(rundir.crash_folder())
    first = Path(rundir.keep_report("z", "first"))
    assert first.read_text() == "first"
    first.rename(folder / "z-20200101T000000.txt")
    (folder / "notes").touch()  # not ours
    kept = [Path(rundir.keep_report(name, name)) for name in "abc"]
    assert sorted(folder.iterdir()) == sorted([*kept, folder / "notes"])


def test_crash_report_that_cannot_be_written_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kvmpv").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert rundir.keep_report("a", "report") == ""
