"""The Linux series carries the header that the VMM is built from."""

from __future__ import annotations

import re

from tests.unit.abi import header

PATCHES = header.ROOT / "guest-patches"


def code(text: str) -> str:
    """Return C without comments and with single blanks: wording may be behind, the ABI may not."""
    return " ".join(re.sub(r"/\*.*?\*/", " ", text, flags=re.DOTALL).split())


def added_file(path: str) -> str:
    """Return the text that the series adds as a new file."""
    for patch in sorted(PATCHES.glob("*.patch")):
        start = re.search(
            rf"^\+\+\+ b/{re.escape(path)}\n@@ -0,0 .*\n", text := patch.read_text(), re.M
        )
        if start:
            lines = text[start.end() :].split("\n")
            end = next(at for at, line in enumerate(lines) if not line.startswith("+"))
            return "".join(f"{line[1:]}\n" for line in lines[:end])
    raise AssertionError(f"no patch adds {path}")


def test_guests_are_built_from_the_same_numbers_and_layouts() -> None:
    copy = added_file("include/uapi/linux/kvmpv.h")
    assert copy.startswith("/* SPDX-License" + "-Identifier: MIT */")
    assert code(copy) == code(header.HEADER.read_text())
