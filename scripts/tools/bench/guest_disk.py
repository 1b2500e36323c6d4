"""scripts/bench guest-disk: fio in our guest against fio in QEMU's microvm.

Each has a file of its own, alike, on a file system in memory that takes O_DIRECT (ext4 on a loop
device on a tmpfs), so that it is the way to the file that is measured.
"""

from __future__ import annotations

import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.tools.bench import exits, guest_tools, rivals
from scripts.tools.bench.figures import Figure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scripts.tools.bench.rivals import Guest, Sample

SIZE = 128 << 20
JOBS = [(op, depth) for op in ("read", "write") for depth in (1, 32)]
WARM_UP = 16  # requests
UNITS = rivals.Units("IOPS", 1.0, "a request")


def figures(rounds: int) -> list[Figure]:
    """Measure all jobs on both, in turn."""
    with exits.tracing(), _disk() as folder, ExitStack() as stack:
        both: list[Guest] = [
            stack.enter_context(
                rivals.Ours(disks=[f"{_file(folder, 'ours')},cache=none"], nets=[])
            ),
            stack.enter_context(rivals.Theirs(_options(_file(folder, "theirs")))),
        ]
        for guest in both:
            guest.shell.run(
                f"D=$(cd /sys/block; grep -L {guest_tools.SERIAL} vd*/serial | head -c3)"
            )
        return [figure for op, depth in JOBS for figure in _job(both, op, depth, rounds)]


@contextmanager
def _disk() -> Iterator[Path]:
    """Give a folder on a file system that takes O_DIRECT."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvmpv-bench-")))

        def mount(*words: str) -> None:
            subprocess.run(["mount", *words, folder], check=True)
            stack.callback(_unmount, folder)

        mount("-t", "tmpfs", "tmpfs")
        image = folder / "disk.ext4"
        guest_tools.make_ext4(image, 2 * SIZE + guest_tools.SPARE)
        subprocess.run(["modprobe", "--quiet", "loop"], check=False)  # or it is built in
        mount("-o", "loop", str(image))
        yield folder


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", folder], check=False)


def _file(folder: Path, name: str) -> Path:
    """Make a file without holes, as both sides get it."""
    path = folder / name
    piece = bytes(range(256)) * 4096
    with path.open("wb") as file:
        for _ in range(SIZE // len(piece)):
            file.write(piece)
    return path


def _options(image: Path) -> list[str]:
    node = f"driver=raw,node-name=disk,cache.direct=on,file.driver=file,file.filename={image}"
    return [
        *(
            "-object",
            "iothread,id=t",
            "-blockdev",
            f"{node},file.cache.direct=on,file.aio=io_uring",
        ),
        *("-device", "virtio-blk-device,drive=disk,iothread=t,serial=disk"),
    ]


def _job(both: list[Guest], op: str, depth: int, rounds: int) -> list[Figure]:
    load = guest_tools.command(
        *("fio", "--name=job", "--thread", "--filename=/dev/$D", f"--rw=rand{op}", "--bs=4k"),
        *("--direct=1", "--ioengine=libaio", f"--iodepth={depth}", "--time_based"),
        *("--runtime=100000", "--gtod_reduce=1", "--norandommap"),
    )
    samples: list[list[Sample]] = [[] for _ in both]
    for guest in both:
        guest.shell.load(load)
        rivals.warm_up(guest, guest.disk_operations, WARM_UP)
    for _ in range(rounds):
        for kept, guest in zip(samples, both, strict=True):
            kept.append(rivals.measure(guest, guest.disk_operations))
    for guest in both:
        guest.shell.unload()
    name = f"4 KiB random {op}, O_DIRECT, depth {depth}"
    return rivals.compare(name, UNITS, samples)
