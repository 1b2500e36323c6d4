# cython: language_level=3, boundscheck=False, binding=False, emit_code_comments=False
"""Call the kernel with the interpreter's lock released, and never twice.

Python's own fcntl.ioctl() holds the lock over a buffer of more than 1024 bytes, and from 3.14
on repeats a call that a signal interrupted: either would be fatal in a vCPU's thread.
"""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport errno

cdef extern from *:
    """

    #include <linux/kvm.h>
    #include <signal.h>
    #include <string.h>
    #include <sys/ioctl.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    static void kvmpv_kicked(int signo) { (void)signo; }

    /* Without SA_RESTART, so that whatever the thread waits in returns EINTR. */
    static int kvmpv_catch(int signo)
    {
        struct sigaction action;

        memset(&action, 0, sizeof(action));
        action.sa_handler = kvmpv_kicked;
        sigemptyset(&action.sa_mask);
        return sigaction(signo, &action, NULL);
    }

    static int kvmpv_tgkill(int thread, int signo)
    {
        return (int)syscall(SYS_tgkill, getpid(), thread, signo);
    }
    """
    unsigned long KVM_RUN
    int c_ioctl "ioctl"(int fd, unsigned long request, ...) nogil
    int kvmpv_catch(int signo) nogil
    int kvmpv_tgkill(int thread, int signo) nogil


def ioctl(int fd, unsigned long request, arg=0):
    """Return the call's result or -errno; ``arg`` is an int or a buffer, written in place."""
    cdef Py_buffer view
    cdef unsigned long number
    cdef int result
    if isinstance(arg, int):
        number = arg
        with nogil:
            result = c_ioctl(fd, request, number)
            if result < 0:
                result = -errno
        return result
    PyObject_GetBuffer(arg, &view, PyBUF_WRITABLE)
    with nogil:
        result = c_ioctl(fd, request, view.buf)
        if result < 0:
            result = -errno
    PyBuffer_Release(&view)
    return result


cdef int enter(int fd) noexcept nogil:
    cdef int result = c_ioctl(fd, KVM_RUN, 0)
    return -errno if result < 0 else 0


def run(int fd):
    """Enter the guest: return 0 at an exit, or -errno (-EINTR: kicked or immediate_exit)."""
    cdef int result
    with nogil:
        result = enter(fd)
    return result


def kick_signal(int signo):
    """Give a signal a handler that does nothing, so that it only interrupts; 0 or -errno."""
    return -errno if kvmpv_catch(signo) < 0 else 0


def kick(int thread, int signo):
    """Send a signal to one thread of this process by its native id; return 0 or -errno."""
    return -errno if kvmpv_tgkill(thread, signo) < 0 else 0


def address(buffer):
    """Return where a writable buffer lies in this process; whoever asks keeps it alive."""
    cdef Py_buffer view
    PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
    cdef unsigned long where = <unsigned long>view.buf
    PyBuffer_Release(&view)
    return where
