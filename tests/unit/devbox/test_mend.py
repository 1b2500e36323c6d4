"""The emulator's executable is changed in two places, or not at all."""

from __future__ import annotations

import struct

import pytest

from kvmpv.devbox import mend

ESI, R12D = bytes.fromhex("89b3"), bytes.fromhex("4489a3")


def stores(
    vector: bytes = ESI, *, index: int = -0x28F0, is_int: int = 0x33E4, next_eip: int = 0x33E8
) -> bytes:
    """Return helper_vmrun's three stores as a compiler makes them, relative to RBX."""
    return (
        vector + struct.pack("<i", index)
        + bytes.fromhex("c783") + struct.pack("<iI", is_int, 0)
        + bytes.fromhex("48c783") + struct.pack("<ii", next_eip, -1)
    )  # fmt: skip


CLEAR = bytes.fromhex("e80102030481a0742c00007fffffff")  # cpu_clear_ignne


def test_two_stores_go_and_nothing_else() -> None:
    program = b"before" + stores() + b"between" + stores(R12D) + CLEAR + b"after"
    changed = mend.mended(program)
    assert changed is not None
    wanted = program.replace(stores()[:6], mend.VECTOR_NOP)
    assert changed == wanted.replace(CLEAR[5:], mend.IGNNE_NOP)
    assert len(changed) == len(program)
    assert mend.mended(changed) is None


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b"an emulator of another kind",
        CLEAR,
        stores(),
        stores() + CLEAR + CLEAR,
        stores() + stores() + CLEAR,
        stores(index=0x28F0) + CLEAR,
        stores(next_eip=0x33F0) + CLEAR,
        stores(is_int=-0x33E4, next_eip=-0x33E0) + CLEAR,
    ],
    ids=[
        *("empty", "none", "no vector", "no clear", "two clears", "two vectors"),
        *("no processor", "not neighbours", "before the base"),
    ],
)
def test_what_is_not_found_for_certain_is_left_alone(program: bytes) -> None:
    assert mend.mended(program) is None
