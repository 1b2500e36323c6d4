"""Put a hostile guest's deeds into its initrd, and read what came of each."""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Final

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from kvmpv import abi
from tests.kvm import refguest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from kvmpv import End

    # RAX, RDI, RSI, R8, R9, R10, RDX, and bits: N adds the initrd's address to RDI, RSI, R8
    Call = tuple[int, int, int, int, int, int, int, int]
    Msr = tuple[int, int, int]  # number, 1 to write it, value

JUNK_MAGIC: Final = 0x6B6E756A
MSRS_MAGIC: Final = 0x7372736D
CHANGED: Final = 1 << 62  # a register other than RAX did not come back
FAULT_GP: Final = 0x10000 + 13
MASK64: Final = (1 << 64) - 1

ERRORS: Final = {value for name, value in vars(abi).items() if re.fullmatch("E[A-Z]+", name)}
CALLS: Final = sorted(value for name, value in vars(abi).items() if name.startswith("HC_"))
# These end a run before the rest of its calls; they have a test of their own.
ENDS: Final = (abi.HC_POWEROFF, abi.HC_REBOOT, abi.HC_CRASH)
GOES_ON: Final = [call for call in CALLS if call not in ENDS]

# Ends that a guest brings about by itself: none of them is the VMM's fault.
GUESTS_OWN: Final = {"poweroff", "crash", "triple-fault", "stuck"}

EDGES: Final = (
    *(0, 1, 2, 7, 8, 15, 16, 1023, 1024, abi.MAX_BUFFER, abi.MAX_BUFFER + 1),
    *(0x9E000, 0xA0000, 0x100000, (16 << 20) - 1, 16 << 20, 0xFEE00000, abi.NO_CHANNEL),
    *(1 << 31, 1 << 32, 1 << 52, 1 << 63, MASK64 - 65535, MASK64 - 7, MASK64),
)
U64 = st.integers(0, MASK64)
WORD = st.sampled_from(EDGES) | U64

# A guest's start costs more than its calls: few runs, each with many calls.
few_runs = settings(
    max_examples=max(2, settings().max_examples // 5),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def call(number: int, *words: int, relative: int = 0) -> Call:
    """Return a call with these arguments; registers that they leave out are 0."""
    rdi, rsi, r8, r9, r10, rdx = (*words, 0, 0, 0, 0, 0, 0)[:6]
    return number, rdi, rsi, r8, r9, r10, rdx, relative


def harms_results(each: Call) -> bool:
    """Tell whether a call meddles with the port that the results come from."""
    number, port, *_, relative = each
    meddles = number in (abi.HC_PORT_WRITE, abi.HC_PORT_CLOSE)
    return meddles and port == abi.PORT_EXEC and not relative & 1


def make_calls(
    folder: Path, batch: Sequence[Call], extra: bytes = b"", vcpus: int = 1
) -> tuple[End, list[int]]:
    """Let the guest make these calls; return the end, and the results as far as it came.

    extra lies in the initrd behind the calls, at ``extra_offset``.
    """
    table = b"".join(struct.pack("<8Q", *each) for each in batch)
    initrd = folder / "junk"
    initrd.write_bytes(struct.pack("<II", JUNK_MAGIC, len(batch)) + table + extra)
    end, guest = refguest.run("junk", initrd=initrd, vcpus=vcpus)
    return end, [each[0] for each in struct.iter_unpack("<q", whole_words(guest))]


def extra_offset(count: int) -> int:
    """Return where extra begins in the initrd behind that many calls."""
    return 8 + 64 * count


def touch_msrs(folder: Path, msrs: Sequence[Msr]) -> tuple[End, list[int]]:
    """Let the guest touch these MSRs; return the end, and 0 or ``FAULT_GP`` for each."""
    table = b"".join(struct.pack("<IIQ", *msr) for msr in msrs)
    initrd = folder / "msrs"
    initrd.write_bytes(struct.pack("<II", MSRS_MAGIC, len(msrs)) + table)
    end, guest = refguest.run("msrs", initrd=initrd)
    return end, [each[0] for each in struct.iter_unpack("<Q", whole_words(guest))]


def whole_words(guest: refguest.Guest) -> bytes:
    return bytes(guest.exec_output[: len(guest.exec_output) // 8 * 8])


def is_answer(number: int, result: int) -> bool:
    """Tell whether a call may have this result."""
    if number not in CALLS:
        return result == -abi.ENOSYS
    return 0 <= result < CHANGED or -result in ERRORS
