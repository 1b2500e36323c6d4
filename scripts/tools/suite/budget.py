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

    def entry(self, place: str, name: str) -> str:
        """Name the line that holds for a file: its own, else the nearest folder's, else none."""
        table = self.ceilings.get(place, {})
        while name not in table:
            head, slash, _ = name.rstrip("/").rpartition("/")
            if not slash:
                return ""
            name = head + "/"
        return name

    def ceiling(self, place: str, name: str) -> float | None:
        """Give a file's own ceiling, else that of each file in the nearest folder listed."""
        return self.ceilings.get(place, {}).get(self.entry(place, name))


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


def owner(shares: list[Share], place: str, name: str) -> Share:
    """Give the share that pays for a file: the one whose line for it is the most exact."""
    return max(shares, key=lambda share: len(share.entry(place, name)))


def ceiling(shares: list[Share], place: str, name: str) -> float | None:
    """Give the ceiling of a file, whichever share holds it."""
    return owner(shares, place, name).ceiling(place, name)


def uncovered(shares: list[Share]) -> list[str]:
    """List the test files without a ceiling."""
    return [
        f"{place}: {name}"
        for place in PLACES
        for name in test_files(place)
        if ceiling(shares, place, name) is None
    ]


def total(share: Share, shares: list[Share]) -> float:
    """Add up a share's ceilings over the files that exist and that it pays for."""
    files = ((place, name) for place in PLACES for name in test_files(place))
    own = (share.ceiling(*file) or 0.0 for file in files if owner(shares, *file) is share)
    return sum(share.ceilings.get("fixed", {}).values()) + sum(own)


def overdrawn(shares: list[Share]) -> list[str]:
    """Say which shares hold more ceilings than seconds."""
    return [
        f"{share.name}: ceilings add up to {spent:.0f} s, the share is {share.seconds:.0f} s"
        for share in shares
        if (spent := total(share, shares)) > share.seconds
    ]
