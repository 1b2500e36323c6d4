"""The budget of minutes: each file's ceiling, and the share that ceilings may add up to."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass

from scripts.tools.place import CHECKOUT

PATH = CHECKOUT / "tests" / "budget.toml"
# The places that test files run in, and the folders whose files run there.
PLACES = {
    "host": ("unit", "style", "host", "kvm", "devbox"),
    "box": ("kvm", "boot"),
}


@dataclass
class Share:
    """Hold one share: its seconds, and ceilings by place and then by file or folder."""

    name: str
    seconds: float
    ceilings: dict[str, dict[str, float]]

    def ceiling(self, place: str, name: str) -> float | None:
        """Give a file's own ceiling, else that of each file in the nearest folder listed."""
        table = self.ceilings.get(place, {})
        while True:
            if name in table:
                return table[name]
            head, slash, _ = name.rstrip("/").rpartition("/")
            if not slash:
                return None
            name = head + "/"


def load() -> list[Share]:
    """Read tests/budget.toml."""
    shares = []
    for name, table in tomllib.loads(PATH.read_text()).items():
        places = {place: dict(files) for place, files in table.items() if place != "share"}
        shares.append(Share(name, table["share"], places))
    return shares


def test_files(place: str) -> list[str]:
    """List the test files that run in a place."""
    folders = (CHECKOUT / "tests" / folder for folder in PLACES[place])
    files = [path for folder in folders for path in folder.glob("**/test_*.py")]
    return sorted(str(path.relative_to(CHECKOUT)) for path in files)


def ceiling(shares: list[Share], place: str, name: str) -> float | None:
    """Give the ceiling of a file, whichever share holds it."""
    found = (share.ceiling(place, name) for share in shares)
    return next((seconds for seconds in found if seconds is not None), None)


def uncovered(shares: list[Share]) -> list[str]:
    """List the test files without a ceiling."""
    return [
        f"{place}: {name}"
        for place in PLACES
        for name in test_files(place)
        if ceiling(shares, place, name) is None
    ]


def total(share: Share) -> float:
    """Add up a share's ceilings over the files that exist, and its fixed costs."""
    files = ((place, name) for place in PLACES for name in test_files(place))
    fixed = sum(share.ceilings.get("fixed", {}).values())
    return fixed + sum(share.ceiling(place, name) or 0.0 for place, name in files)


def overdrawn(shares: list[Share]) -> list[str]:
    """Say which shares hold more ceilings than seconds."""
    return [
        f"{share.name}: ceilings add up to {total(share):.0f} s, the share is {share.seconds:.0f} s"
        for share in shares
        if total(share) > share.seconds
    ]
