"""scripts/bench [PART] [--rounds N] [--json]: all parts, or one of them."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Callable

from kvmpv.errors import HostError, KvmpvError
from scripts.tools.bench import (
    disk_backend,
    guest,
    guest_disk,
    guest_net,
    guest_tools,
    native,
    net_backend,
    ring,
)
from scripts.tools.bench.figures import Figure, table
from scripts.tools.place import BUILD, CHECKOUT

Measure = Callable[[int], list[Figure]]
PARTS: dict[str, tuple[Measure, int]] = {  # with how many rounds
    "native": (native.figures, 21),
    "disk-backend": (disk_backend.figures, 5),
    "net-backend": (net_backend.figures, 5),
    "ring": (ring.figures, 5),
}
GUESTS: dict[str, Measure] = {  # with Linux guests
    "guest": guest.figures,
    "guest-disk": guest_disk.figures,
    "guest-net": guest_net.figures,
}
GUEST_ROUNDS = 5
HERE = [sys.executable, "-m", "scripts.tools.bench"]


def main() -> int:
    """Measure what was asked for; return 1 when a goal is not met."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("part", nargs="?", choices=(*PARTS, *GUESTS))
    parser.add_argument(
        "--rounds", type=int, default=0, help="rounds of each (21 native, 5 others)"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was made is undone
    figures: list[Figure] = []
    for name, (measure, rounds) in PARTS.items():
        if options.part in (None, name):
            figures += measure(options.rounds or rounds)
    for name in GUESTS:
        if options.part in (None, name):
            figures += _guest(name, options.rounds or GUEST_ROUNDS, options.here)
    if options.json:
        print(json.dumps([figure.as_dict() for figure in figures]))
    else:
        print(table(figures))
    return 0 if all(figure.met for figure in figures) else 1


def _guest(part: str, rounds: int, here: bool) -> list[Figure]:
    """Measure with Linux guests: here if they run here, else in the dev box."""
    if here or _runs_linux():
        return GUESTS[part](rounds)
    print("scripts/bench: Linux guests run in the dev box", file=sys.stderr)
    guest_tools.image()  # so that the box finds it
    inside = [*HERE, part, "--here", "--json", "--rounds", str(rounds)]
    done = subprocess.run(
        [CHECKOUT / "scripts" / "devbox", "run", "--", "env", "PYTHONPATH=.", *inside],
        stdout=subprocess.PIPE, check=False,
    )  # fmt: skip
    if not done.stdout:
        raise HostError(f"{part}: status {done.returncode} in the dev box", hint="see above")
    rows = json.loads(done.stdout)
    return [Figure(**{key: row[key] for key in Figure.__dataclass_fields__}) for row in rows]


def _runs_linux() -> bool:
    asked = subprocess.run(
        [BUILD / "bin" / "kvmpv", "doctor", "--json"], stdout=subprocess.PIPE, check=False
    )
    return bool(json.loads(asked.stdout)["linux"])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KvmpvError as error:
        print(f"scripts/bench: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
