"""The series, and what is remembered of the source."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmpv.errors import BadInput, HostError
from kvmpv.images import kernel, kernel_source

HEADER = kernel.PATCHES.parent / "kvmpv" / "abi" / "kvmpv.h"


def test_series_is_read_in_its_order(tmp_path: Path) -> None:
    for name in ("b.patch", "a.patch"):
        (tmp_path / name).write_text("")
    (tmp_path / "series").write_text("# why\n\nb.patch\na.patch  # last\n")
    assert [path.name for path in kernel_source.series(tmp_path)] == ["b.patch", "a.patch"]


def test_missing_patch_is_named(tmp_path: Path) -> None:
    (tmp_path / "series").write_text("gone.patch\n")
    with pytest.raises(BadInput, match=r"gone\.patch"):
        kernel_source.series(tmp_path)


def test_missing_series_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="series"):
        kernel_source.series(tmp_path)


def test_series_holds_every_patch_that_there_is() -> None:
    listed = kernel_source.series(kernel.PATCHES)
    assert sorted(listed) == sorted(kernel.PATCHES.glob("*.patch"))


def test_kernel_has_the_abi_header_as_it_is() -> None:
    patch = kernel_source.series(kernel.PATCHES)[0].read_text()
    _, _, rest = patch.partition("+++ b/include/uapi/linux/kvmpv.h\n")
    lines = rest.partition("\ndiff --git ")[0].splitlines()
    added = [line[1:] for line in lines if line.startswith("+")]
    assert added == HEADER.read_text().splitlines()


def test_index_tells_of_every_patch() -> None:
    index = (kernel.PATCHES / "README.md").read_text()
    for patch in kernel_source.series(kernel.PATCHES):
        assert f"| {patch.name[:4]} |" in index, patch.name


def test_digest_is_remembered_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tarball = tmp_path / "source.tar"
    tarball.write_bytes(b"one")
    first = kernel_source.digest(tarball)
    (note,) = (tmp_path / "cache" / "kvmpv" / "kernel").iterdir()
    note.write_text("remembered")
    assert kernel_source.digest(tarball) == "remembered"
    tarball.write_bytes(b"other")
    assert kernel_source.digest(tarball) not in ("remembered", first)


def test_missing_source_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_source, "PLACE", tmp_path)
    with pytest.raises(HostError, match=r"Debian package linux-source-6\.1"):
        kernel_source.find()


def test_source_that_is_not_there_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot read"):
        kernel_source.digest(tmp_path / "gone.tar.xz")
