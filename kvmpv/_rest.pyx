# cython: binding=False
"""Wait for long, and leave the memory that code takes to others meanwhile."""

from libc.stdint cimport uint32_t, uintptr_t

cdef extern from "<link.h>" nogil:
    ctypedef struct Segment "ElfW(Phdr)":
        uint32_t p_type
        uint32_t p_flags
        uintptr_t p_vaddr
        uintptr_t p_memsz
    struct dl_phdr_info:
        uintptr_t dlpi_addr
        const Segment *dlpi_phdr
        int dlpi_phnum
    int dl_iterate_phdr(int (*visit)(dl_phdr_info *, size_t, void *) noexcept nogil, void *data)
    uint32_t PT_LOAD, PF_W

cdef extern from "<sys/auxv.h>" nogil:
    uintptr_t getauxval(unsigned long type)
    unsigned long AT_SYSINFO_EHDR

cdef extern from "<sys/mman.h>" nogil:
    int madvise(void *address, size_t length, int advice)
    int MADV_DONTNEED

cdef extern from "<malloc.h>" nogil:
    int malloc_trim(size_t pad)

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout_ms)
    short POLLIN

cdef uintptr_t PAGE = 4096

QUIET = 1.0  # seconds without anything to do, after which more of that is expected


cdef int _give_back(dl_phdr_info *loaded, size_t size, void *data) noexcept nogil:
    """Unmap the pages of a program's or a library's segments that are never written to.

    They are as in the file, and come back from the page cache at the next touch; but a debugger's
    breakpoints, which are written there, do not.
    """
    cdef const Segment *segment
    cdef uintptr_t start, end
    if loaded.dlpi_addr == getauxval(AT_SYSINFO_EHDR):
        return 0  # the vDSO, which has no file behind it
    for index in range(loaded.dlpi_phnum):
        segment = &loaded.dlpi_phdr[index]
        if segment.p_type == PT_LOAD and not segment.p_flags & PF_W:
            # Whole pages of its own: what shares the last one might be data.
            start = (loaded.dlpi_addr + segment.p_vaddr + PAGE - 1) & ~(PAGE - 1)
            end = (loaded.dlpi_addr + segment.p_vaddr + segment.p_memsz) & ~(PAGE - 1)
            if start < end:
                madvise(<void *>start, end - start, MADV_DONTNEED)
    return 0


def rest(int fd):
    """Wait until ``fd`` is readable or a signal comes; for whom nothing else is to be done.

    The pages of code are given back before: an interpreter's start touches megabytes that it
    never needs again. Waiting is part of it, for the way back to the caller's own wait would touch
    half of them. Costs the next one who runs some dozens of minor faults.
    """
    cdef pollfd waited
    waited.fd = fd
    waited.events = POLLIN
    with nogil:
        malloc_trim(0)
        dl_iterate_phdr(_give_back, NULL)
        poll(&waited, 1, -1)
