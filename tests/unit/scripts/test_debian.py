from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from scripts.tools import debian
from scripts.tools.progress import StepFailed

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("dlstatus:1:50:Retrieving file 1 of 2", 0.25),
        ("pmstatus:bc:50.0:Unpacking bc (amd64)", 0.75),
        ("Setting up bc (1.07.1-3+b1) ...", None),
        ("pmstatus:", None),
    ],
)
def test_apt_tells_how_far_it_is(line: str, part: float | None) -> None:
    assert debian._percent(line) == part


def test_missing_package_without_network_is_named_in_one_line(tmp_path: Path) -> None:
    log = tmp_path / "apt.log"
    log.write_text(
        "Err:1 the-mirror bookworm InRelease\n"
        "  Temporary failure resolving 'the-mirror'\n"
        "E: Unable to fetch some archives, maybe run apt-get update\n"
    )
    message = debian._explain(["bc"], StepFailed("packages", 100, log))
    assert "\n" not in message
    assert message.startswith("missing Debian package: bc; ")
    assert "Temporary failure resolving 'the-mirror'" in message


def test_unprivileged_user_without_sudo_learns_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(debian.SetupError, match="missing Debian packages: bc flex"):
        debian._as_root(["bc", "flex"])
