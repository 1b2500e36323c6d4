"""Load a kernel: an ELF with a 64-bit entry, or a bzImage with the 64-bit boot protocol.

Specifications: System V ABI, AMD64 supplement (ELF), and Documentation/x86/boot.rst of Linux.
Nothing in the file is believed: a broken one costs its user one line.
"""

from __future__ import annotations

import os
import struct

from kvmpv.abi.address_map import GAP_START, HIGH_RAM, MIB, PAGE
from kvmpv.errors import BadInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from kvmpv.memory import GuestMemory

ELF_HEADER: Final = struct.Struct("<4sBBB9xHHIQQQIHHH")
PROGRAM_HEADER: Final = struct.Struct("<IIQQQQQQ")
PT_LOAD: Final = 1
EM_X86_64: Final = 62

SETUP_HEADER: Final = 0x1F1  # in the file, and in boot_params
SETUP_HEADER_END: Final = 0x290
BZIMAGE_LOAD: Final = 16 * MIB
XLF_KERNEL_64: Final = 1
ENTRY_64: Final = 0x200  # from the start of the protected-mode part

NO_KERNEL: Final = "give a vmlinux or a bzImage: --kernel"
WHOLE: Final = "build or copy it again"


class Kernel:
    """What the loader found: where to start, where the image ends, Linux's setup header."""

    __slots__ = ("end", "entry", "setup_header")

    def __init__(self, entry: int, end: int, setup_header: bytes) -> None:
        self.entry = entry
        self.end = end
        self.setup_header = setup_header


def load_kernel(memory: GuestMemory, fd: int) -> Kernel:
    """Load the kernel in the file ``fd``; raise ``BadInput`` when it is none that can run here."""
    head = os.pread(fd, PAGE, 0)
    if head[:4] == b"\x7fELF":
        return _load_elf(memory, fd, head)
    if head[0x202:0x206] == b"HdrS"[:4] or head[0x1FE:0x200] == b"\x55\xaa":
        return _load_bzimage(memory, fd, head)
    raise BadInput("the kernel is neither an ELF file nor a bzImage", hint=NO_KERNEL)


def _load_elf(memory: GuestMemory, fd: int, head: bytes) -> Kernel:
    if len(head) < ELF_HEADER.size:
        raise BadInput("the kernel is truncated: it ends within its ELF header", hint=WHOLE)
    fields = ELF_HEADER.unpack_from(head)
    _, bits, order, _, kind, machine, _, entry, table, _, _, _, entry_size, count = fields
    if bits != 2 or order != 1:
        raise BadInput("the kernel is a 32-bit ELF file", hint="build it for x86-64")
    if machine != EM_X86_64:
        raise BadInput(
            f"the kernel is for another architecture: ELF machine {machine}",
            hint="build it for x86-64",
        )
    if kind not in (2, 3) or entry_size != PROGRAM_HEADER.size or not count:
        raise BadInput("the kernel is an ELF file, but no executable", hint="use vmlinux")
    length = os.fstat(fd).st_size
    if table + entry_size * count > length:
        raise BadInput("the kernel is truncated: it ends within its program headers", hint=WHOLE)
    headers = os.pread(fd, entry_size * count, table)
    end = 0
    for at in range(0, len(headers), entry_size):
        kind, _, offset, _, address, in_file, in_memory, _ = PROGRAM_HEADER.unpack_from(headers, at)
        if kind != PT_LOAD or not in_memory:
            continue
        _check_segment(memory, address, in_file, in_memory)
        if offset + in_file > length:
            missing = offset + in_file - length
            raise BadInput(f"the kernel is truncated: {missing} bytes are missing", hint=WHOLE)
        memory.readinto(address, in_file, fd, offset)
        end = max(end, address + in_memory)
    if memory.slice(entry, 1) is None or not end:
        raise BadInput(
            f"the kernel's entry point {entry:#x} does not lie in guest memory", hint="use vmlinux"
        )
    return Kernel(entry, end, b"")


def _check_segment(memory: GuestMemory, address: int, in_file: int, in_memory: int) -> None:
    if address < HIGH_RAM or address + in_memory > 1 << 63 or in_file > in_memory:
        raise BadInput(
            f"the kernel has a segment at {address:#x}, which no kernel can have",
            hint="use vmlinux",
        )
    if memory.slice(address, in_memory) is None:
        need = (address + in_memory + MIB - 1) // MIB
        raise BadInput(
            f"the kernel does not fit into {memory.size // MIB} MiB of memory",
            hint=f"it needs more than {need} MiB: --memory",
        )


def _load_bzimage(memory: GuestMemory, fd: int, head: bytes) -> Kernel:
    if len(head) < SETUP_HEADER_END:
        raise BadInput("the kernel is truncated: it ends within its setup header", hint=WHOLE)
    if head[0x202:0x206] != b"HdrS":
        raise BadInput("the kernel is neither an ELF file nor a bzImage", hint=NO_KERNEL)
    sectors = head[0x1F1] or 4
    (version,) = struct.unpack_from("<H", head, 0x206)
    (flags,) = struct.unpack_from("<H", head, 0x236)
    (init_size,) = struct.unpack_from("<I", head, 0x260)
    if version < 0x20C or not flags & XLF_KERNEL_64:
        raise BadInput(
            "the kernel is a bzImage without a 64-bit entry point", hint="build it for x86-64"
        )
    start = (sectors + 1) * 512
    length = os.fstat(fd).st_size - start
    (size,) = struct.unpack_from("<I", head, 0x1F4)
    if length < size * 16:
        missing = size * 16 - length
        raise BadInput(f"the kernel is truncated: {missing} bytes are missing", hint=WHOLE)
    if length <= ENTRY_64:
        raise BadInput("the kernel is a bzImage without a kernel in it", hint=WHOLE)
    _check_segment(memory, BZIMAGE_LOAD, length, max(length, init_size))
    memory.readinto(BZIMAGE_LOAD, length, fd, start)
    # The header ends where its jump instruction leads to (boot.rst, "header, type: write").
    header_end = min(0x202 + head[0x201], SETUP_HEADER_END)
    end = BZIMAGE_LOAD + max(length, init_size)
    return Kernel(BZIMAGE_LOAD + ENTRY_64, end, head[SETUP_HEADER:header_end])


def load_initrd(memory: GuestMemory, fd: int, kernel: Kernel) -> tuple[int, int]:
    """Load the initial RAM disk as high as it fits below the gap; return its address and size."""
    size = os.fstat(fd).st_size
    if not size:
        raise BadInput("the initrd is empty", hint="give none, or a cpio archive: --initrd")
    top = min(memory.regions[0].size, GAP_START)
    address = (top - size) & ~(PAGE - 1)
    if address < kernel.end:
        raise BadInput(
            f"the initrd of {size:,} bytes does not fit into memory beside the kernel",
            hint="give more: --memory",
        )
    memory.readinto(address, size, fd, 0)
    return address, size
