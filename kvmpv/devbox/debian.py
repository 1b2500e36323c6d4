"""The box's two parts that Debian makes: the emulator (backports' QEMU) and the kernel."""

from __future__ import annotations

import lzma
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from kvmpv.devbox import debs, mend
from kvmpv.errors import HostError
from kvmpv.images import keyed

if TYPE_CHECKING:
    from collections.abc import Callable

# Debian's own 7.2 hangs one two-vCPU guest in eight under TCG; 10.0 none in 72.
EMULATOR_SUITE = "bookworm-backports"
EMULATOR_PACKAGES = ["qemu-system-x86", "qemu-system-common", "qemu-system-data"]
# Debian's 7.2 brings the libraries, which suffice for 10.0, and the firmware.
LIBRARY_PACKAGE = "qemu-system-x86"
_FIRMWARE = Path("/usr/share/seabios")

# Names in the cache.
_EMULATOR = "emulator-box"
_KERNEL = "kernel-box"


class Emulator:
    """An unpacked QEMU."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def program(self) -> Path:
        """The emulator's executable file."""
        return self.root / "usr/bin/qemu-system-x86_64"

    @property
    def data_folders(self) -> list[Path]:
        """Where its firmware is."""
        return [self.root / "usr/share/qemu", self.root / "usr/share/seabios", _FIRMWARE]

    @property
    def mended(self) -> bool:
        """Whether what it does wrong with SVM was mended."""
        return (self.root / "mended").exists()


class Kernel:
    """An unpacked Debian kernel."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def image(self) -> Path:
        """The uncompressed ELF file: an emulated processor is slow at unpacking."""
        return self.root / "vmlinux"

    @property
    def modules(self) -> Path:
        """The folder of its modules, modules.dep included."""
        return next(iter((self.root / "lib/modules").iterdir()))

    @property
    def release(self) -> str:
        """What ``uname -r`` says."""
        return self.modules.name


def emulator() -> Emulator:
    """Return the private QEMU, fetching it if there is none yet."""
    return Emulator(_newest(_EMULATOR, _fetch_emulator))


def kernel() -> Kernel:
    """Return the box's kernel, fetching it if there is none yet."""
    return Kernel(_newest(_KERNEL, _fetch_kernel))


def fetched() -> bool:
    """Tell whether both are there, so that a box starts without a network."""
    return all(any(keyed.cache().glob(f"devbox/{name}-*")) for name in (_EMULATOR, _KERNEL))


def _newest(name: str, fetch: Callable[[str], Path]) -> Path:
    """Return what was fetched last: a box must start without a network."""
    have = sorted(keyed.cache().glob(f"devbox/{name}-*"), key=lambda path: path.stat().st_mtime)
    return have[-1] if have else fetch(name)


def _state() -> Path:
    return keyed.cache() / "apt"


def _fetch_emulator(name: str) -> Path:
    with tempfile.TemporaryDirectory(prefix="kvmpv-deb-") as room:
        packages = debs.fetch(EMULATOR_PACKAGES, Path(room), suite=EMULATOR_SUITE, state=_state())

        def make(into: Path) -> None:
            for package in packages:
                debs.unpack(package, into)
            _mend(Emulator(into))
            _check_emulator(Emulator(into))

        return keyed.build(f"devbox/{name}", _version(packages[-1]), make)


def _mend(found: Emulator) -> None:
    program = mend.mended(found.program.read_bytes())
    if program is not None:
        found.program.write_bytes(program)
        (found.root / "mended").touch()


def _check_emulator(found: Emulator) -> None:
    done = subprocess.run([found.program, "--version"], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.splitlines() or ["no message"])[-1]
        raise HostError(
            f"the box's emulator does not start: {reason}",
            hint=f"install the Debian package {LIBRARY_PACKAGE}",
        )


def _fetch_kernel(name: str) -> Path:
    real = debs.depends("linux-image-amd64", "linux-image-", state=_state())
    with tempfile.TemporaryDirectory(prefix="kvmpv-deb-") as room:
        packages = debs.fetch([real], Path(room), state=_state())

        def make(into: Path) -> None:
            unpacked = Path(room) / "unpacked"
            debs.unpack(packages[0], unpacked)
            into.mkdir()
            (unpacked / "lib").rename(unpacked / "moved")
            shutil.move(unpacked / "moved", into / "lib")
            image = next((unpacked / "boot").glob("vmlinuz-*"))
            (into / "vmlinux").write_bytes(uncompressed(image.read_bytes()))
            depmod = shutil.which("depmod", path="/usr/sbin:/sbin:/usr/bin:/bin")
            if not depmod:
                raise HostError("no depmod", hint="install the Debian package kmod")
            subprocess.run([depmod, "-b", into, Kernel(into).release], check=True)

        return keyed.build(f"devbox/{name}", _version(packages[0]), make)


def _version(package: Path) -> str:
    """Return the version in a package file's name, without what a path cannot hold."""
    version = package.name.split("_")[1].replace("%3a", ":")
    return version.partition(":")[2] or version


def uncompressed(image: bytes) -> bytes:
    """Return the ELF kernel inside a bzImage that was compressed with xz."""
    sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (sectors + 1) * 512 + offset
    payload = image[start : start + length]
    if not payload.startswith(b"\xfd7zXZ"):
        raise HostError("the box's kernel is not compressed with xz")
    return lzma.LZMADecompressor().decompress(payload)
