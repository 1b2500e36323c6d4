"""Where packages come from: the machine's own sources, whatever their form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kvmpv.errors import HostError
from kvmpv.images import apt_sources

if TYPE_CHECKING:
    from pathlib import Path

DEB822 = """\
# a comment
Types: deb
URIs: copy:/archive/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/archive.gpg

Types: deb
URIs: copy:/archive/security
Suites: bookworm-security
Components: main
"""
ONE_LINE = (
    "# deb copy:/off/debian bookworm main\n"
    "deb [signed-by=/k.gpg arch=amd64,i386] copy:/one/debian bookworm main contrib\n"
)


def etc(tmp_path: Path, **files: str) -> Path:
    (tmp_path / "sources.list.d").mkdir()
    for name, text in files.items():
        (tmp_path / "sources.list.d" / name.replace("_", ".")).write_text(text)
    return tmp_path


def test_the_archives_own_entry_is_taken_with_the_suite_replaced(tmp_path: Path) -> None:
    found = apt_sources.archive_source(etc(tmp_path, debian_sources=DEB822), "bookworm-backports")
    assert found.splitlines() == [
        "Types: deb",
        "Uris: copy:/archive/debian",
        "Suites: bookworm-backports",
        "Components: main",
        "Signed-By: /usr/share/keyrings/archive.gpg",
    ]


def test_the_one_line_form_is_read_too(tmp_path: Path) -> None:
    found = apt_sources.archive_source(etc(tmp_path, extra_list=ONE_LINE), "bookworm-backports")
    assert "Uris: copy:/one/debian\n" in found
    assert "Signed-By: /k.gpg\n" in found
    assert "Arch: amd64 i386\n" in found


def test_no_archive_is_one_line_and_a_hint(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="no Debian bookworm archive"):
        apt_sources.archive_source(etc(tmp_path), "bookworm-backports")


def test_guest_gets_updates_where_the_machine_has_them(tmp_path: Path) -> None:
    found = apt_sources.guest_sources(etc(tmp_path, debian_sources=DEB822), "bookworm")
    suites = [line for line in found.splitlines() if line.startswith("Suites:")]
    names = ["bookworm", "bookworm-updates", "bookworm-security"]
    assert suites == [f"Suites: {name}" for name in names]
