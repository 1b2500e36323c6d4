"""scripts/bench [native|guest|disk-backend|net-backend|ring] [--rounds N] [--json]."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable

from kvmpv.errors import KvmpvError
from scripts.tools.bench import disk_backend, guest, native, net_backend, ring
from scripts.tools.bench.figures import Figure, table
from scripts.tools.place import BUILD, CHECKOUT

PARTS: dict[str, tuple[Callable[[int], list[Figure]], int]] = {
    "disk-backend": (disk_backend.figures, 5),
    "net-backend": (net_backend.figures, 5),
    "ring": (ring.figures, 5),
}
HERE = [sys.executable, "-m", "scripts.tools.bench"]


def main() -> int:
    """Measure what was asked for; return 1 when a goal is not met."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("part", nargs="?", choices=("native", "guest", *PARTS))
    parser.add_argument("--rounds", type=int, default=0, help="rounds of each (21 native, 5 guest)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    figures: list[Figure] = []
    if options.part in (None, "native"):
        figures += native.figures(options.rounds or 21)
    for name, (measure, rounds) in PARTS.items():
        if options.part in (None, name):
            figures += measure(options.rounds or rounds)
    if options.part in (None, "guest"):
        figures += _guest(options.rounds or 5, options.here)
    if options.json:
        print(json.dumps([figure.as_dict() for figure in figures]))
    else:
        print(table(figures))
    return 0 if all(figure.met for figure in figures) else 1


def _guest(rounds: int, here: bool) -> list[Figure]:
    """Measure with Linux guests: here if they run here, else in the dev box."""
    asked = subprocess.run(
        [BUILD / "bin" / "kvmpv", "doctor", "--json"], stdout=subprocess.PIPE, check=False
    )
    if here or json.loads(asked.stdout)["linux"]:
        return guest.figures(rounds)
    print("scripts/bench: Linux guests run in the dev box", file=sys.stderr)
    inside = [*HERE, "guest", "--here", "--json", "--rounds", str(rounds)]
    done = subprocess.run(
        [CHECKOUT / "scripts" / "devbox", "run", "--", "env", "PYTHONPATH=.", *inside],
        stdout=subprocess.PIPE, check=False,
    )  # fmt: skip
    rows = json.loads(done.stdout)
    return [Figure(**{key: row[key] for key in Figure.__dataclass_fields__}) for row in rows]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KvmpvError as error:
        print(f"scripts/bench: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
