"""Sources that the series does not fit, and the series as its kernel's maintainers look at it."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from kvmpv.errors import BadInput
from kvmpv.images import kernel, kernel_source

# What checkpatch says although it is right as it is: a call without a hypervisor is ENOSYS; new
# folders are in MAINTAINERS as folders; outside of a tree it cannot see which headers there are.
IGNORED = ("ENOSYS", "FILE_PATH_CHANGES", "INCLUDE_LINUX", "ARCH_INCLUDE_LINUX")


@pytest.fixture
def tarball(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source that looks like a kernel and is none, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "linux.tar.xz"
    with tarfile.open(path, "w:xz") as archive:
        for name in ("Kconfig", "Makefile", "MAINTAINERS"):
            info = tarfile.TarInfo(f"linux-source-6.1/{name}")
            info.size = 6
            archive.addfile(info, io.BytesIO(b"other\n"))
    return path


def remains(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "cache/kvmpv/kernel").iterdir() if path.is_dir()]


def test_series_that_does_not_apply_names_the_patch(tmp_path: Path, tarball: Path) -> None:
    with pytest.raises(BadInput, match=r"^0001-.* does not apply to linux\.tar\.xz") as caught:
        kernel.build("pv", source=tarball, say=io.StringIO())
    assert "linux-source-6.1" in caught.value.hint
    assert remains(tmp_path) == []


def test_file_that_is_no_source_is_told(tmp_path: Path, tarball: Path) -> None:
    tarball.write_bytes(b"no archive")
    with pytest.raises(BadInput, match="no kernel source"):
        kernel.build("pv", source=tarball, say=io.StringIO())
    assert remains(tmp_path) == []


BUILD = """
import io, sys
from pathlib import Path
from kvmpv.images import kernel, kernel_make, kernel_source

def hang(tarball, tree, job):
    tree.mkdir()
    print("hangs", flush=True)
    job.run(["sleep", "1000"], tree)

kernel_source.unpack = hang
kernel.build("pv", source=Path(sys.argv[1]), say=io.StringIO())
"""


def test_interrupted_build_leaves_nothing(tmp_path: Path, tarball: Path) -> None:
    command = [sys.executable, "-c", BUILD, str(tarball)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"hangs\n"
        time.sleep(0.2)
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=20) != 0
    assert remains(tmp_path) == []


def test_series_is_clean_under_checkpatch() -> None:
    script = kernel.wanted("pv").folder / "checkpatch" / "checkpatch.pl"
    patches = [str(path) for path in kernel_source.series(kernel.PATCHES)]
    command = ["perl", str(script), "--strict", "--no-tree", "--no-summary", "--terse"]
    command += ["--color=never", "--ignore", ",".join(IGNORED), *patches]
    # Not in a git repository, where checkpatch takes a patch for source.
    done = subprocess.run(command, cwd=script.parent, capture_output=True, text=True, check=False)
    assert done.stdout == ""
