"""With Linux guests, where KVM runs them: exits, faults and time, against QEMU's microvm."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from kvmpv.toolstack import defaults
from scripts.tools.bench import qemu
from scripts.tools.bench.figures import Figure, interleaved
from scripts.tools.place import BUILD

KVMPV = str(BUILD / "bin" / "kvmpv")
MIB = 1 << 20
MEMORY = 256  # MiB
SIZE_LIMIT = 6.0  # MB
PEER_CMDLINE = "loglevel=4 panic=-1 reboot=t kvmpv.shell=off kvmpv.end=reboot kvmpv.run=true"


def figures(rounds: int) -> list[Figure]:
    """Measure all of it."""
    ours: list[dict[str, int]] = []
    theirs: list[dict[str, int]] = []

    def own_time() -> float:
        ours.append(_run_kvmpv(["--exec", "true"]))
        return (ours[-1]["ns_to_end"] - ours[-1]["ns_to_run"]) / 1e9

    def peer_time() -> float:
        seconds, stats = _run_qemu()
        theirs.append(stats)
        return seconds

    own, peer = interleaved(rounds, own_time, peer_time)
    name = f"QEMU {qemu.version()} microvm"
    whole = _middle(ours, "ns_to_end") / 1e9
    user, exits = _middle(ours, "exits_to_user_space"), _middle(ours, "kvm_exits")
    peer_exits, peer_faults = _middle(theirs, "exits"), _middle(theirs, "pf_taken")
    faults = _middle(ours, "kvm_pf_taken")
    return [
        Figure("--exec true, exits to user space", "", user, 0, "", 49),
        Figure("--exec true, all exits", "", exits, peer_exits, name, 1.1),
        Figure("--exec true, page faults", "", faults, peer_faults, name, 1.1),
        Figure("--exec true, guest time", "s", own, peer, name, 1.0),
        Figure("--exec true, whole time", "s", whole, 0, "", 0),
        *_sizes(),
    ]


def _middle(samples: list[dict[str, int]], key: str) -> float:
    return float(sorted(sample.get(key, 0) for sample in samples)[len(samples) // 2])


def _run_kvmpv(more: list[str]) -> dict[str, int]:
    done = subprocess.run(
        [KVMPV, "run", "-m", f"{MEMORY}M", "--json", *more],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
    )  # fmt: skip
    stats: dict[str, int] = json.loads(done.stderr)["stats"]
    return stats


def _run_qemu() -> tuple[float, dict[str, int]]:
    argv = qemu.arguments(defaults.kernel(), memory=MEMORY, cpu="host")
    peer = qemu.Qmp([*argv, "-initrd", defaults.initrd(), "-append", PEER_CMDLINE])
    try:
        return peer.run_to_shutdown(), peer.stats()
    finally:
        peer.close()


def _sizes() -> list[Figure]:
    image = Path(os.path.realpath(defaults.kernel())).with_name("bzImage")
    least = _run_kvmpv(["--exec", "true", "-m", "64M"])
    return [
        Figure("guest kernel image", "MB", image.stat().st_size / 1e6, 0, "", SIZE_LIMIT),
        Figure("boots with 64 MiB", "boots", float(least["boots"]), 0, "", 1),
    ]
