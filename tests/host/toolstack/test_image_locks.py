"""A raw image is one program's at a time, whether that is ours or QEMU."""

from __future__ import annotations

import fcntl
import subprocess
from typing import TYPE_CHECKING

import pytest

from kvmpv import ofd
from kvmpv.errors import BadInput
from kvmpv.toolstack import devices, disks

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 16))
    return path


class Qemu:
    """QEMU's code with an image open to be written to, until it is closed; or what it said."""

    def __init__(self, path: Path) -> None:
        argv = ["qemu-io", "-f", "raw", str(path)]
        pipe = subprocess.PIPE
        self._program = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT)
        assert self._program.stdin
        assert self._program.stdout
        try:
            self._program.stdin.write(b"length\n")
            self._program.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, and said why
        self.said = self._program.stdout.readline().decode()

    @property
    def has_it(self) -> bool:
        """Whether it could open it; what it lacked else was a lock."""
        assert "64 KiB" in self.said or "lock" in self.said
        return "64 KiB" in self.said

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._program.kill()
        self._program.communicate()


def opened(path: Path, *options: str) -> disks.Image:
    return disks.open_image(devices.disk(",".join([str(path), *options])), [])


def test_what_qemu_writes_to_is_refused_unless_forced(image: Path) -> None:
    with Qemu(image) as qemu:
        assert qemu.has_it
        for options in ([], ["readonly"], ["snapshot=on"]):
            with pytest.raises(BadInput, match="is in use by QEMU"):
                opened(image, *options)
        opened(image, "force").close()
    opened(image).close()


def test_what_another_program_has_locked_is_refused_unless_forced(image: Path) -> None:
    """From its first byte to its last, as by lockf."""
    with image.open("r+b") as other:
        ofd.take(other.fileno(), fcntl.F_WRLCK, 0, 1 << 16)
        for options in ([], ["readonly"]):
            with pytest.raises(BadInput, match="is locked by another process"):
                opened(image, *options)
        opened(image, "force").close()
    opened(image).close()


@pytest.mark.parametrize("options", [[], ["readonly"]])
def test_qemu_is_refused_what_is_ours(image: Path, options: list[str]) -> None:
    ours = opened(image, *options)
    with Qemu(image) as qemu:
        assert not qemu.has_it
    ours.close()
    with Qemu(image) as qemu:
        assert qemu.has_it
