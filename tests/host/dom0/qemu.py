"""QEMU 7.2 as the front end of our worker: a guest under plain emulation, with our kernel."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from kvmpv.cache import folder
from kvmpv.images import keyed
from kvmpv.images.cpio import Archive

if TYPE_CHECKING:
    from tests.host.dom0.workers import Worker


MARK = "---"  # what the kernel has to say lies around two of them


def run(
    worker: Worker, device: str, command: str, *, initrd: Path | None = None, seconds: float = 40
) -> str:
    """Run a command in a guest that has device 0 of the worker; return what it printed.

    ``device`` is QEMU's name of the device and its options, less the connection.
    """
    images = Path(folder()) / "current"
    initrd = initrd or images / "initrd.cpio"
    fd = worker.frontends[0].fileno()
    marked = f"echo {MARK}; {command}; echo {MARK}"
    words = f'console=ttyS0 quiet panic=-1 reboot=t kvmpv.end=reboot kvmpv.run="{marked}"'
    done = subprocess.run(
        [
            *("qemu-system-x86_64", "-machine", "microvm,acpi=off,memory-backend=ram"),
            *("-accel", "tcg", "-cpu", "max", "-m", "192", "-no-user-config", "-nodefaults"),
            *("-display", "none", "-no-reboot", "-serial", "stdio"),
            *("-object", "memory-backend-memfd,id=ram,size=192M,share=on"),
            *("-kernel", str(images / "vmlinux"), "-initrd", str(initrd)),
            *("-append", words, "-chardev", f"socket,id=c,fd={fd}"),
            *("-device", f"{device},chardev=c"),
        ],
        pass_fds=[fd],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=seconds,
        check=False,
    )
    output = done.stdout.decode("utf-8", "replace").replace("\r\n", "\n")
    assert done.returncode == 0, output
    return output.split(MARK)[1]


def with_program(name: str, into: Path) -> Path:
    """Compile a program of this folder; return an initrd that has it in /bin."""
    archive = Archive()
    archive.file(f"bin/{name}", compiled(name).read_bytes(), 0o755)
    made = into / "initrd.cpio"
    made.write_bytes((Path(folder()) / "current/initrd.cpio").read_bytes() + archive.data())
    return made


def compiled(name: str) -> Path:
    """Compile a program of this folder for any guest; kept, for a compiler is slow in the box."""
    source = Path(__file__).parent / f"{name}.c"

    def make(into: Path) -> None:
        flags = ("-static", "-O1", "-Wall", "-Werror")
        subprocess.run(["gcc", *flags, "-o", into, source], check=True)

    return keyed.build(f"tests/{name}", keyed.digest([source]), make)
