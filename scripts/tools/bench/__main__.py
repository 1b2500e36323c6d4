"""scripts/bench [native|guest] [--rounds N] [--json]."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

from kvmpv.errors import KvmpvError
from scripts.tools.bench import guest, native
from scripts.tools.bench.figures import Figure, table
from scripts.tools.place import BUILD, CHECKOUT

HERE = [sys.executable, "-m", "scripts.tools.bench"]


def main() -> int:
    """Measure what was asked for; return 1 when a goal is not met."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("part", nargs="?", choices=("native", "guest"))
    parser.add_argument("--rounds", type=int, default=0, help="rounds of each (21 native, 5 guest)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    figures: list[Figure] = []
    if options.part != "guest":
        figures += native.figures(options.rounds or 21)
    if options.part != "native":
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
