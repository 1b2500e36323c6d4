# cython: binding=False
"""Map memory that another process shares with us.

Python's own ``mmap`` does not tell where its mapping lies, and the compiled loops want addresses.
"""

from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.buffer cimport PyBUF_WRITE
from libc.errno cimport errno
from libc.stdint cimport uintptr_t

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t length)
    int madvise(void *address, size_t length, int advice)
    void *MAP_FAILED
    int PROT_NONE, PROT_READ, PROT_WRITE
    int MAP_PRIVATE, MAP_SHARED, MAP_ANONYMOUS, MAP_FIXED, MAP_NORESERVE
    int MADV_HUGEPAGE, MADV_DONTDUMP, MADV_DONTFORK

cdef size_t HUGE_PAGE = 2 << 20


def map_shared(int fd, size_t length, long offset):
    """Map ``length`` bytes of ``fd`` from ``offset``; return the address, or -errno.

    What is a whole huge page of the file lies on a huge page's boundary, and may be mapped as one.
    It is left out of core dumps.
    """
    cdef size_t skew = <size_t>offset & (HUGE_PAGE - 1)
    cdef size_t reserved = length + 2 * HUGE_PAGE
    if reserved < length:
        return -12  # ENOMEM
    cdef char *room = <char *>mmap(
        NULL, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0
    )
    if room == MAP_FAILED:
        return -errno
    cdef uintptr_t start = ((<uintptr_t>room + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1)) + skew
    cdef void *mapped = mmap(
        <void *>start, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, offset
    )
    cdef int error = errno
    if mapped == MAP_FAILED:
        munmap(room, reserved)
        return -error
    # The room around it goes back: what lies before, and after its last page.
    cdef uintptr_t end = (start + length + 4095) & ~(<uintptr_t>4095)
    if start > <uintptr_t>room:
        munmap(room, start - <uintptr_t>room)
    munmap(<void *>end, <uintptr_t>room + reserved - end)
    madvise(mapped, length, MADV_HUGEPAGE)
    madvise(mapped, length, MADV_DONTDUMP)
    return start


def unmap(uintptr_t address, size_t length):
    """Unmap; return 0 or -errno."""
    return -errno if munmap(<void *>address, length) else 0


def view(uintptr_t address, Py_ssize_t length):
    """Return a writable memoryview of mapped memory; it must not outlive the mapping."""
    return PyMemoryView_FromMemory(<char *>address, length, PyBUF_WRITE)
