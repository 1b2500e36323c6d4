# cython: binding=False
"""Map shared memory at an alignment of our choice, and give the kernel advice on it.

Python's own ``mmap`` can neither choose an address nor say where a mapping lies, and KVM wants
both: 2 MiB alignment makes huge pages possible, the address goes into the memory slot.
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


def map_shared(int fd, size_t length, long offset, size_t alignment):
    """Map ``length`` bytes of ``fd`` shared, at a multiple of ``alignment``; return the address.

    Return -errno when the kernel refuses. ``alignment`` is a power of two.
    """
    cdef char *reserved = <char *>mmap(
        NULL, length + alignment, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0
    )
    if reserved == MAP_FAILED:
        return -errno
    cdef uintptr_t start = (<uintptr_t>reserved + alignment - 1) & ~(alignment - 1)
    cdef void *mapped = mmap(
        <void *>start, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, offset
    )
    cdef int error = errno
    cdef uintptr_t end = <uintptr_t>reserved + length + alignment
    if start > <uintptr_t>reserved:
        munmap(reserved, start - <uintptr_t>reserved)
    if mapped == MAP_FAILED:
        munmap(<void *>start, end - start)
        return -error
    munmap(<void *>(start + length), end - start - length)
    return start


def view(uintptr_t address, Py_ssize_t length):
    """Return a writable memoryview of mapped memory; it must not outlive the mapping."""
    return PyMemoryView_FromMemory(<char *>address, length, PyBUF_WRITE)


def unmap(uintptr_t address, size_t length):
    """Unmap; return 0 or -errno."""
    return -errno if munmap(<void *>address, length) else 0


def advise(uintptr_t address, size_t length, int advice):
    """Give madvise(2) advice with the GIL released; return 0 or -errno."""
    cdef int result
    with nogil:
        result = madvise(<void *>address, length, advice)
    return -errno if result else 0
