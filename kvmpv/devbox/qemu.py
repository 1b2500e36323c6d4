"""The box's emulator: its command line and its process."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from kvmpv.devbox import debian, initramfs
from kvmpv.devbox.place import CHECKOUT
from kvmpv.images import keyed

if TYPE_CHECKING:
    from pathlib import Path

    from kvmpv.devbox.place import Place

MEMORY_MIB = 4096
CPUS = 2
CPU = "EPYC,+svm,+npt"
CMDLINE = "console=ttyS0 panic=-1 mitigations=off nokaslr loglevel=5"


def live_folders(shares: list[str]) -> list[str]:
    """Return the folders that are seen live in the box: the checkout, the cache, the shares."""
    return [str(CHECKOUT), str(keyed.cache()), *shares]


def command(place: Place, agent_fd: int, shares: list[str]) -> list[str]:
    """Return the emulator's command line, fetching and building what it needs."""
    emulator, kernel = debian.emulator(), debian.kernel()
    live = live_folders(shares)
    tags = ",".join(f"live{index}:{path}" for index, path in enumerate(live))
    more = f"box.live={tags} box.modules={kernel.modules}"
    argv = [str(emulator.program)]
    for folder in emulator.data_folders:
        argv += ["-L", str(folder)]
    argv += [
        "-name", f"kvmpv-devbox-{place.name}",
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", CPU,
        "-smp", str(CPUS), "-m", str(MEMORY_MIB),
        "-kernel", str(kernel.image), "-initrd", str(initramfs.build(kernel)),
        "-append", f"{CMDLINE} {more}",
        "-serial", f"file:{place.console}",
        "-device", "virtio-serial-pci",
        "-chardev", f"socket,id=agent,fd={agent_fd}",
        "-device", "virtserialport,chardev=agent,name=kvmpv.agent",
        "-virtfs", export("/", "root") + ",readonly=on",
    ]  # fmt: skip
    for index, path in enumerate(live):
        argv += ["-virtfs", export(path, f"live{index}")]
    return argv


def export(path: Path | str, tag: str) -> str:
    """Return the option that lets the box mount a folder of the host."""
    escaped = str(path).replace(",", ",,")
    return f"local,path={escaped},mount_tag={tag},security_model=none,multidevs=remap"


def start(argv: list[str], agent_fd: int) -> subprocess.Popen[bytes]:
    """Start the emulator so that it dies with this process."""
    return subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *argv],
        stdin=subprocess.DEVNULL,
        pass_fds=[agent_fd],
    )
