"""Mend the emulator's VMRUN, which can deliver an interrupt twice (docs/devbox.md).

QEMU's helper_vmrun (target/i386/tcg/system/svm_helper.c) delivers an injected interrupt itself,
and stores its vector as the pending exception too, where a later kick finds it and delivers it
again. The vector is that store's whole use: without it the processor has no exception pending.
"""

from __future__ import annotations

import re
import struct

NOP = bytes.fromhex("660f1f440000")  # as long as the store

# exception_index = vector, exception_is_int = 0, exception_next_eip = -1: x86-64, each by one base
# register and 32 bits of displacement. The vector is in ESI, for the call that follows.
_SITE = re.compile(
    rb"(?P<store>\x89[\xb0-\xb7](?P<index>.{4})|" + re.escape(NOP) + rb")"
    rb"\xc7[\x80-\x87](?P<is_int>.{4})\0{4}"
    rb"\x48\xc7[\x80-\x87](?P<next_eip>.{4})\xff{4}",
    re.DOTALL,
)


def mended(program: bytes) -> bytes | None:
    """Return an emulator's executable without that store; None where it is not found for certain.

    A program that is mended already comes back as it is.
    """
    sites = [site for site in _SITE.finditer(program) if _is_vmrun(site)]
    if len(sites) != 1:
        return None
    start, end = sites[0].span("store")
    return program[:start] + NOP + program[end:]


def _is_vmrun(site: re.Match[bytes]) -> bool:
    """Tell whether three stores go where QEMU's structures have these fields."""
    is_int, next_eip = (_displacement(site[name]) for name in ("is_int", "next_eip"))
    if next_eip != is_int + 4:
        return False
    # The processor's common part lies before the registers, which the base points to.
    return site["index"] is None or _displacement(site["index"]) < 0 < is_int


def _displacement(field: bytes) -> int:
    return int(struct.unpack("<i", field)[0])
