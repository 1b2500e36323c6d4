"""scripts/bench disk-backend: our block worker against qemu-storage-daemon, without a guest."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from scripts.tools.bench import backends
from scripts.tools.bench.backends import Job
from scripts.tools.bench.figures import Figure
from scripts.tools.place import BUILD

if TYPE_CHECKING:
    from scripts.tools.bench.backends import Backend, Sample

KINDS = (backends.Worker, backends.StorageDaemon)
FILE_SIZE = 1 << 30
SECONDS = 0.7
SMALL, LARGE = 4096, 131072
JOBS = [
    Job(image, op, sequential, block, depth)
    for image in (False, True)
    for op, sequential, block in (
        ("read", False, SMALL),
        ("write", False, SMALL),
        ("read", True, LARGE),
        ("write", True, LARGE),
    )
    for depth in (1, 32)
]
PEER = "qemu-storage-daemon"


def figures(rounds: int) -> list[Figure]:
    """Measure all jobs on both, in turn, so that the machine's moods hit both alike."""
    with ExitStack() as stack:
        # Not below /tmp, which may be in memory: O_DIRECT wants a disk.
        where = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=BUILD))
        folder = Path(where)
        client = backends.build_client(folder)
        image = folder / "disk.img"
        _fill(image)
        found: list[Figure] = []
        for on_file in (False, True):
            with ExitStack() as pair:
                both: list[Backend] = []
                for kind in KINDS:
                    # Each has a file of its own: neither shall wait for the other's lock.
                    own = folder / f"{kind.__name__}.img"
                    if on_file:
                        image.replace(own) if not both else _fill(own)
                    both.append(kind(kind.__name__, folder, str(own) if on_file else ""))
                    pair.callback(both[-1].close)
                for job in JOBS:
                    if job.image == on_file:
                        found += _job(client, both, job, rounds)
        return found


def _fill(image: Path) -> None:
    """Write an image full: holes would be read from nowhere."""
    piece = bytes(range(256)) * 4096
    with image.open("wb") as file:
        for _ in range(FILE_SIZE // len(piece)):
            file.write(piece)


def _job(client: Path, both: list[Backend], job: Job, rounds: int) -> list[Figure]:
    samples: list[list[Sample]] = [[] for _ in both]
    for _ in range(rounds):
        for kept, backend in zip(samples, both, strict=True):
            kept.append(backends.run(client, backend, job, SECONDS, FILE_SIZE))
    calls = tuple(backends.syscalls(client, backend, job, FILE_SIZE) for backend in both)

    def middle(key: str) -> tuple[float, float]:
        ours, theirs = ([float(getattr(one, key)) for one in kept] for kept in samples)
        return median(ours), median(theirs)

    # A ratio of times per request: the goal on null at depth 32 is 1.2 times the rate.
    ours, theirs = middle("iops")
    goal = 1 / 1.2 if not job.image and job.depth == 32 and job.block == SMALL else 1.0
    rates = f"{PEER} ({ours / 1e3:.1f}k against {theirs / 1e3:.1f}k a second)"
    cpu = middle("cpu_ns")
    return [
        Figure(job.name, "us", 1e6 / ours, 1e6 / theirs, rates, round(goal, 3)),
        Figure("  CPU of the backend, a request", "us", cpu[0] / 1e3, cpu[1] / 1e3, PEER, 1.0),
        *(
            Figure(f"  {what}, a request", "", pair[0], pair[1], PEER, 0)
            for what, pair in (
                ("system calls", calls),
                ("kicks", middle("kicks")),
                ("interrupts", middle("signals")),
            )
        ),
    ]
