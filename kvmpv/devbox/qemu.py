"""The box's emulator: its command line and its process."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from kvmpv.devbox import debian, fast, initramfs, through
from kvmpv.devbox.place import CHECKOUT
from kvmpv.images import keyed

if TYPE_CHECKING:
    from kvmpv.devbox.place import Place

_IO_NICE = -10
MEMORY_MIB = 4096
CPUS = 2
CPU = "EPYC,+svm,+npt"
CMDLINE = "console=ttyS0 panic=-1 mitigations=off nokaslr tsc=reliable loglevel=5"


def plain_folders(shares: list[str]) -> list[str]:
    """Return the folders that the box sees live and does not cache: our cache, the shares."""
    return [str(keyed.cache()), *shares]


def command(place: Place, agent_fd: int, shares: list[str]) -> list[str]:
    """Return the emulator's command line, fetching and building what it needs."""
    emulator, kernel = debian.emulator(), debian.kernel()
    plain = plain_folders(shares)
    tags = ",".join(f"plain{index}:{path}" for index, path in enumerate(plain))
    quick = fast.folders()
    more = (
        f"box.live=checkout:{CHECKOUT} box.plain={tags} box.modules={kernel.modules} "
        f"box.fast={','.join(map(str, quick))}"
    )
    argv = [str(emulator.program)]
    for folder in emulator.data_folders:
        argv += ["-L", str(folder)]
    argv += [
        "-name", f"kvmpv-devbox-{place.name},debug-threads=on",
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-machine", "q35,hpet=off,smm=off,vmport=off", "-accel", "tcg,thread=multi", "-cpu", CPU,
        "-smp", str(CPUS), "-m", str(MEMORY_MIB),
        "-kernel", str(kernel.image), "-initrd", str(initramfs.build(kernel)),
        "-append", f"{CMDLINE} {more}",
        "-serial", f"file:{place.console}",
        "-device", "virtio-serial-pci,max_ports=2",
        "-chardev", f"socket,id=agent,fd={agent_fd}",
        "-device", "virtserialport,chardev=agent,name=kvmpv.agent",
        "-virtfs", export("/", "root") + ",readonly=on",
        # Only what through.sh mounts gets at it.
        "-virtfs", export("/", through.TAG),
        "-virtfs", export(CHECKOUT, "checkout"),
    ]  # fmt: skip
    for index, path in enumerate(plain):
        argv += ["-virtfs", export(path, f"plain{index}")]
    for index, folder in enumerate(quick):
        image = str(fast.image(folder)).replace(",", ",,")
        argv += ["-drive", f"if=none,id=fast{index},format=raw,snapshot=on,file={image}"]
        argv += ["-device", f"virtio-blk-pci,drive=fast{index}"]
    return argv


def export(path: Path | str, tag: str) -> str:
    """Return the option that lets the box mount a folder of the host."""
    escaped = str(path).replace(",", ",,")
    return f"local,path={escaped},mount_tag={tag},security_model=none,multidevs=remap"


def favour_io(pid: int) -> None:
    """Let the emulator's file server run before its processors, where that is allowed.

    On a busy machine each file operation of the box otherwise waits for a whole time slice.
    """
    for task in Path(f"/proc/{pid}/task").iterdir():
        if "/TCG" in (task / "comm").read_text():
            continue
        try:
            os.setpriority(os.PRIO_PROCESS, int(task.name), _IO_NICE)
        except OSError:
            return


def start(argv: list[str], agent_fd: int) -> subprocess.Popen[bytes]:
    """Start the emulator so that it dies with this process."""
    return subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *argv],
        stdin=subprocess.DEVNULL,
        pass_fds=[agent_fd],
    )
