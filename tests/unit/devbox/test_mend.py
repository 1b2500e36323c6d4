"""The emulator's executable is changed in one place, or not at all."""

from __future__ import annotations

import struct

import pytest

from kvmpv.devbox import mend

ESI, R12D = bytes.fromhex("89b3"), bytes.fromhex("4489a3")


def stores(
    vector: bytes = ESI, *, index: int = -0x28F0, is_int: int = 0x33E4, next_eip: int = 0x33E8
) -> bytes:
    """Return the three stores as a compiler makes them, relative to RBX."""
    return (
        vector + struct.pack("<i", index)
        + bytes.fromhex("c783") + struct.pack("<iI", is_int, 0)
        + bytes.fromhex("48c783") + struct.pack("<ii", next_eip, -1)
    )  # fmt: skip


def test_the_store_of_the_vector_goes_and_nothing_else() -> None:
    program = b"before" + stores() + b"between" + stores(R12D) + b"after"
    changed = mend.mended(program)
    assert changed is not None
    assert changed == program.replace(stores()[:6], mend.NOP)
    assert len(changed) == len(program)
    assert mend.mended(changed) == changed


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b"an emulator of another kind",
        stores() + stores(),
        stores(index=0x28F0),
        stores(next_eip=0x33F0),
        stores(is_int=-0x33E4, next_eip=-0x33E0),
    ],
    ids=["empty", "none", "two", "no processor", "not neighbours", "before the base"],
)
def test_what_is_not_found_for_certain_is_left_alone(program: bytes) -> None:
    assert mend.mended(program) is None
