"""Give a test's guest virtio devices, behind backends of the test's own choice."""

from __future__ import annotations

import array
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

from kvmpv.toolstack import vmm
from tests.kvm.refguest import Guest

if TYPE_CHECKING:
    from kvmpv.toolstack.config import DomainConfig
    from kvmpv.toolstack.vmm import Descriptors

ROOT = Path(__file__).parents[2]
PYTHON = sys.executable  # a test may have the VMM run by another one


class Disk:
    """One disk of a guest, and the process that serves it now."""

    def __init__(
        self, number: int, size: int = 1 << 20, *, order: str = "", **options: str
    ) -> None:
        self.number = number
        self.order = f"blk{order}"
        self.options = options
        self.image = os.memfd_create("image")
        os.ftruncate(self.image, size)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, **options: str) -> socket.socket:
        """Start a backend; return the VMM's end of its socket."""
        ours, theirs = socket.socketpair()
        words = [f"{key}={value}" for key, value in {**self.options, **options}.items()]
        fds = [str(theirs.fileno()), str(self.image)]
        argv = [PYTHON, "-m", "tests.kvm.ramdisk", *fds, *words]
        passed = (theirs.fileno(), self.image)
        self.process = subprocess.Popen(argv, cwd=ROOT, pass_fds=passed)
        theirs.close()
        return ours

    def kill(self) -> None:
        """Kill the backend as nobody can expect."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        os.close(self.image)


class StillbornDisk(Disk):
    """A disk whose first backend dies before it says anything."""

    _born = False

    def start(self, **options: str) -> socket.socket:
        if self._born:
            return super().start(**options)
        self._born = True
        ours, theirs = socket.socketpair()
        theirs.close()
        return ours


class SilentDisk(Disk):
    """A disk whose backend takes all that it is sent, and never answers."""

    def start(self, **_options: str) -> socket.socket:
        ours, self.theirs = socket.socketpair()
        return ours

    def close(self) -> None:
        self.theirs.close()
        super().close()


class DiskGuest(Guest):
    """The reference guest, with disks."""

    def __init__(self, test: str, *disks: Disk, **options: object) -> None:
        super().__init__(test, **options)  # type: ignore[arg-type]
        self.disks = disks

    def __enter__(self) -> Self:
        spawn = vmm.spawn

        def spawn_with(config: DomainConfig, descriptors: Descriptors, cmdline: str) -> int:
            for disk in self.disks:
                descriptors.give_device(disk.number, disk.order, disk.start().detach())
            return spawn(config, descriptors, cmdline)

        vmm.spawn = spawn_with
        try:
            return super().__enter__()
        finally:
            vmm.spawn = spawn

    def __exit__(self, *arguments: object) -> None:
        super().__exit__(*arguments)  # type: ignore[arg-type]
        for disk in self.disks:
            disk.close()

    def send(self, line: str, fd: socket.socket) -> str:
        """Send a line with a socket to the control socket; return the answer."""
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(30)
            control.connect(str(Path(self.domain._directory.path, "control")))
            rights = array.array("i", [fd.fileno()])
            control.sendmsg(
                [line.encode() + b"\n"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
            )
            fd.close()
            return control.recv(65536).decode().strip()

    def replace(self, disk: Disk, **options: str) -> None:
        """Start a disk's next backend, and bring it to the VMM."""
        assert self.send(f"backend {disk.number}", disk.start(**options)) == "ok"
