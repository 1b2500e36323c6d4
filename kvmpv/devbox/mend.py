"""Mend what the emulator does wrong with SVM, in its executable (docs/devbox.md).

Two stores of QEMU's target/i386/tcg/system each become instructions that do nothing:

- helper_vmrun (svm_helper.c) delivers an injected interrupt itself, and stores its vector as the
  pending exception too, where a later kick finds it and delivers it again.
- cpu_clear_ignne (fpu_helper.c), which each restoring of FPU state on any processor comes to,
  clears a bit of the first processor's flags, from the thread of the other and with no lock. What
  the first changes just then is lost: whether it has nested paging, or takes interrupts. The bit is
  for operating systems that want floating-point errors as IRQ 13; nothing here ever sets it.
"""

from __future__ import annotations

import re
import struct

VECTOR_NOP = bytes.fromhex("660f1f440000")
IGNNE_NOP = bytes.fromhex("662e0f1f840000000000")

# exception_index = vector, exception_is_int = 0, exception_next_eip = -1: x86-64, each by one base
# register and 32 bits of displacement. The vector is in ESI, for the call that follows.
_VECTOR = re.compile(
    rb"(?P<store>\x89[\xb0-\xb7](?P<index>.{4}))"
    rb"\xc7[\x80-\x87](?P<is_int>.{4})\0{4}"
    rb"\x48\xc7[\x80-\x87](?P<next_eip>.{4})\xff{4}",
    re.DOTALL,
)
# A call that checks a type, and hflags2 &= ~0x80 at what it returns.
_IGNNE = re.compile(rb"\xe8.{4}(?P<store>\x81\xa0.{4}\x7f\xff{3})", re.DOTALL)


def mended(program: bytes) -> bytes | None:
    """Return an emulator's executable without these stores; None where one is not certain."""
    vectors = [site for site in _VECTOR.finditer(program) if _is_vmrun(site)]
    clears = list(_IGNNE.finditer(program))
    if len(vectors) != 1 or len(clears) != 1:
        return None
    changed = bytearray(program)
    for site, nop in ((vectors[0], VECTOR_NOP), (clears[0], IGNNE_NOP)):
        start, end = site.span("store")
        changed[start:end] = nop
    return bytes(changed)


def _is_vmrun(site: re.Match[bytes]) -> bool:
    """Tell whether three stores go where QEMU's structures have these fields."""
    index, is_int, next_eip = (
        struct.unpack("<i", site[name])[0] for name in ("index", "is_int", "next_eip")
    )
    # The processor's common part lies before the registers, which the base points to.
    return bool(index < 0 < is_int == next_eip - 4)
