# cython: language_level=3, boundscheck=False, wraparound=False, binding=False, emit_code_comments=False
"""What every hypercall goes through: the exit loop as far as it is compiled.

It runs the vCPU, takes number and arguments from the run page, calls the handler and puts its
result there, without interpreted Python in between. Registers and errors are docs/abi/hypercalls.md's.
"""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uint8_t, uint64_t

from kvmpv import abi

from kvmpv.kvm._ioctl cimport enter

cdef extern from "Python.h":
    uint64_t PyLong_AsUnsignedLongLongMask(object number) except? 0xffffffffffffffff

cdef extern from "<linux/kvm.h>":
    enum:
        KVM_SYNC_X86_REGS
    struct kvm_regs:
        uint64_t rax, rdi, rsi, r8, r9, r10
    struct kvm_segment:
        uint8_t l, dpl
    struct kvm_sregs:
        kvm_segment cs, ss
    struct kvm_sync_regs:
        kvm_regs regs
        kvm_sregs sregs
    struct kvm_run:
        uint64_t kvm_dirty_regs

cdef extern from *:
    """
    #include <linux/kvm.h>

    /* Unions and structs without names: Cython has no words for them. */
    static inline int kvmpv_at_gate(const struct kvm_run *run, unsigned int port)
    {
        return run->exit_reason == KVM_EXIT_IO && run->io.direction == KVM_EXIT_IO_OUT &&
               run->io.size == 4 && run->io.count == 1 && run->io.port == port;
    }

    static inline struct kvm_sync_regs *kvmpv_registers(struct kvm_run *run)
    {
        return &run->s.regs;
    }
    """
    bint kvmpv_at_gate(const kvm_run *run, unsigned int port) nogil
    kvm_sync_regs *kvmpv_registers(kvm_run *run) nogil

cdef enum:
    NUMBERS = 256  # more than the ABI has calls

cdef unsigned int GATE = abi.GATE_PORT_NUMBER
cdef int64_t REFUSED = -abi.EPERM
cdef int64_t UNKNOWN_CALL = -abi.ENOSYS

DOWN = 1
OTHER = 0
UNKNOWN = -1


cdef class Gate:
    """One vCPU's way to the handlers of hypercalls.

    Keep register sets REGS and SREGS in the run page: see Vcpu.sync().
    """

    cdef object _index
    cdef list _handlers
    cdef uint64_t _calls[NUMBERS]
    cdef uint64_t _unknown

    def __init__(self, handlers, index):
        self._handlers = [handlers.get(number) for number in range(NUMBERS)]
        self._index = index

    @property
    def calls(self):
        """How many calls there were, by number; all that are unknown count as UNKNOWN."""
        counted = {number: self._calls[number] for number in range(NUMBERS) if self._calls[number]}
        if self._unknown:
            counted[UNKNOWN] = self._unknown
        return counted

    def serve(self, int fd, page):
        """Run the vCPU and answer its hypercalls until there is something else to do.

        Return -errno of KVM_RUN, DOWN when a handler returned None, or OTHER: the run page holds an
        exit that is no call.
        """
        cdef Py_buffer view
        cdef int result
        PyObject_GetBuffer(page, &view, PyBUF_WRITABLE)
        try:
            return self._serve(fd, <kvm_run *>view.buf)
        finally:
            PyBuffer_Release(&view)

    cdef int _serve(self, int fd, kvm_run *run) except? -1:
        cdef kvm_sync_regs *at = kvmpv_registers(run)
        cdef kvm_regs *regs = &at.regs
        cdef int error
        cdef uint64_t number
        while True:
            with nogil:
                error = enter(fd)
            if error:
                return error
            if not kvmpv_at_gate(run, GATE):
                return OTHER
            number = regs.rax
            if not at.sregs.cs.l or at.sregs.ss.dpl:
                regs.rax = <uint64_t>REFUSED
            elif number >= NUMBERS or self._handlers[number] is None:
                self._unknown += 1
                regs.rax = <uint64_t>UNKNOWN_CALL
            else:
                self._calls[number] += 1
                answer = self._handlers[number](
                    self._index, regs.rdi, regs.rsi, regs.r8, regs.r9, regs.r10
                )
                if answer is None:
                    return DOWN
                regs.rax = PyLong_AsUnsignedLongLongMask(answer)
            run.kvm_dirty_regs = KVM_SYNC_X86_REGS
