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
    worker: Worker,
    device: str,
    command: str,
    *,
    path: Path | None = None,
    initrd: Path | None = None,
    seconds: float = 40,
) -> str:
    """Run a command in a guest that has device 0 of the worker; return what it printed.

    ``device`` is QEMU's name of the device and its options, less the connection. ``path`` is where
    the worker listens, if it does.
    """
    images = Path(folder()) / "current"
    initrd = initrd or images / "initrd.cpio"
    fd = worker.frontends[0].fileno() if not path else -1
    where = f"path={path}" if path else f"fd={fd}"
    marked = f"echo {MARK}; {command}; echo {MARK}"
    words = f'console=ttyS0 quiet panic=-1 reboot=t kvmpv.end=reboot kvmpv.run="{marked}"'
    done = subprocess.run(
        [
            *("qemu-system-x86_64", "-machine", "microvm,acpi=off,memory-backend=ram"),
            *("-accel", "tcg", "-cpu", "max", "-m", "192", "-no-user-config", "-nodefaults"),
            *("-display", "none", "-no-reboot", "-serial", "stdio"),
            *("-object", "memory-backend-memfd,id=ram,size=192M,share=on"),
            *("-kernel", str(images / "vmlinux"), "-initrd", str(initrd)),
            *("-append", words, "-chardev", f"socket,id=c,{where}"),
            *connected(device),
        ],
        pass_fds=[fd] if fd >= 0 else [],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=seconds,
        check=False,
    )
    output = done.stdout.decode("utf-8", "replace").replace("\r\n", "\n")
    assert done.returncode == 0, output
    return output.split(MARK)[1]


def connected(device: str) -> list[str]:
    """Return the options that connect a device: a card has QEMU's net layer in between."""
    if device.startswith("virtio-net"):
        netdev = "vhost-user,id=n,chardev=c" + (",queues=2" if ",mq=on" in device else "")
        return ["-netdev", netdev, "-device", f"{device},netdev=n"]
    return ["-device", f"{device},chardev=c"]


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
