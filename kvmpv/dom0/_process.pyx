# cython: binding=False
"""What a process can change about itself, and Python has no call for: prctl(2) and capset(2)."""

from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d)
    int PR_SET_NAME, PR_SET_NO_NEW_PRIVS

cdef extern from "<sys/syscall.h>" nogil:
    long SYS_capset, SYS_capget

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, void *header, void *data)

cdef extern from "<linux/capability.h>" nogil:
    uint32_t _LINUX_CAPABILITY_VERSION_3
    struct __user_cap_header_struct:
        uint32_t version
        int pid
    struct __user_cap_data_struct:
        uint32_t effective
        uint32_t permitted
        uint32_t inheritable


def name(bytes text):
    """Name this thread, and so the process where it is the first; return 0 or -errno."""
    cdef char *given = text
    return -errno if prctl(PR_SET_NAME, <unsigned long>given, 0, 0, 0) else 0


def no_new_privileges():
    """Gain nothing by executing a program from now on; return 0 or -errno."""
    return -errno if prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) else 0


def keep_capabilities(uint64_t wanted):
    """Give up all capabilities but those in a mask, of which none is gained; return 0 or -errno.

    This thread's own: call it before there are others.
    """
    cdef __user_cap_header_struct header
    cdef __user_cap_data_struct data[2]
    header.version = _LINUX_CAPABILITY_VERSION_3
    header.pid = 0
    if syscall(SYS_capget, &header, &data[0]):
        return -errno
    cdef uint32_t word
    cdef int half
    for half in range(2):
        word = <uint32_t>(wanted >> (32 * half))
        data[half].effective &= word
        data[half].permitted &= word
        data[half].inheritable = 0
    return -errno if syscall(SYS_capset, &header, &data[0]) else 0
