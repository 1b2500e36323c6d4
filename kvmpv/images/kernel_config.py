"""The guest kernel's configuration: fragments over allnoconfig, and nothing lost on the way."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from kvmpv.errors import BadInput
from kvmpv.images import kernel_make

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from kvmpv.images.kernel_make import Job

_SET = re.compile(r"(CONFIG_\w+)=(.+)")
_UNSET = re.compile(r"# (CONFIG_\w+) is not set")


def parse(text: str) -> dict[str, str]:
    """Return the options of a fragment or a .config; one that is not set is ``n``.

    Raises BadInput for a line that is neither option nor comment: a typo would pass unseen.
    """
    options = {}
    for number, line in enumerate(text.splitlines(), 1):
        if found := _SET.fullmatch(line.strip()):
            options[found[1]] = found[2]
        elif found := _UNSET.fullmatch(line.strip()):
            options[found[1]] = "n"
        elif line.strip() and not line.startswith("#"):
            raise BadInput(
                f"line {number} of a configuration fragment is no option: {line.strip()}"
            )
    return options


def merge(fragments: Iterable[Path]) -> dict[str, str]:
    """Return the options of all fragments; a later one wins."""
    options: dict[str, str] = {}
    for fragment in fragments:
        options |= parse(fragment.read_text())
    return options


def lost(asked: dict[str, str], final: dict[str, str]) -> list[str]:
    """Return the options that did not survive, each with what was asked and what came of it."""
    found = ((name, value, final.get(name, "n")) for name, value in asked.items())
    return [f"{name}={value} became {now}" for name, value, now in found if value != now]


def configure(fragments: Iterable[Path], tree: Path, job: Job) -> None:
    """Write the tree's .config; raises BadInput if an asked option did not survive."""
    job.say("configuring")
    asked = merge(fragments)
    lines = [f"{n}={v}" if v != "n" else f"# {n} is not set" for n, v in asked.items()]
    (tree / "asked.config").write_text("\n".join(lines) + "\n")
    kernel_make.make(tree, job, "allnoconfig", variables={"KCONFIG_ALLCONFIG": "asked.config"})
    if gone := lost(asked, parse((tree / ".config").read_text())):
        raise BadInput(
            f"the kernel's configuration lost {len(gone)} options: {', '.join(gone[:8])}",
            hint="an option that they depend on is missing in the fragment",
        )
