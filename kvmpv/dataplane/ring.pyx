# cython: language_level=3, boundscheck=False, binding=False, emit_code_comments=False
"""The compiled ring as an object, for tests and for devices that are not in a hurry."""

from cpython.buffer cimport PyBUF_WRITE
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport int64_t, uintptr_t
from libc.string cimport memset

from kvmpv.errors import BadInput


cdef extern from "ring_cost.h" nogil:
    int64_t ring_cost(uint64_t requests, bint with_log)


class RingBroken(Exception):
    """Say in one word or a few how a driver broke its ring."""


def fault_texts():
    """Return how a ring can break, by number."""
    return [ring_fault_text[i].decode() for i in range(RING_FAULTS)]


def log_bytes(uint32_t size):
    """Return how many bytes the in-flight log of a queue of ``size`` takes."""
    return inflight_bytes(size)


def view(uintptr_t address, Py_ssize_t length):
    """Return a writable memoryview of mapped memory; it must not outlive the mapping."""
    return PyMemoryView_FromMemory(<char *>address, length, PyBUF_WRITE)


def cost(uint64_t requests, bint with_log=False):
    """Return the nanoseconds that pop and push of a chain of three descriptors take."""
    cdef int64_t picoseconds
    with nogil:
        picoseconds = ring_cost(requests, with_log)
    if picoseconds < 0:
        raise MemoryError("no memory for the rings")
    return picoseconds / 1000


cdef class Ring:
    """One queue over memory ``regions`` (guest address, size, our address); no thread of its own.

    The three parts of the ring are given by our addresses. Raise ``BadInput`` unless they lie in
    those regions, aligned, and ``size`` is a power of two.
    """

    cdef guest_memory memory
    cdef vring ring
    cdef iovec pieces[1024]
    cdef readonly list recovered

    def __init__(self, regions, uint32_t size, uintptr_t desc, uintptr_t avail, uintptr_t used,
                 uint64_t features=0, uint16_t base=0, uintptr_t log=0):
        cdef uintptr_t where
        memset(&self.memory, 0, sizeof(self.memory))
        self.recovered = []
        for gpa, length, address in regions:
            where = address
            if not memory_add(&self.memory, gpa, length, <uint8_t *>where):
                raise BadInput(f"memory region at {gpa:#x} wraps or overlaps, or is one too many")
        if not vring_init(&self.ring, &self.memory, size, <void *>desc, <void *>avail,
                          <void *>used, features, base):
            raise BadInput("a ring of that size does not lie in guest memory there")
        if log:
            self._recover(log)

    cdef _recover(self, uintptr_t log):
        cdef uint16_t heads[RING_MAX_SIZE]
        cdef int count = vring_recover(&self.ring, <inflight_log *>log, heads)
        for i in range(count):
            self.recovered.append(heads[i])

    @property
    def fault(self):
        """How the ring is broken, as a number; 0: it is not."""
        return self.ring.fault

    @property
    def next_avail(self):
        """The index of the next available entry."""
        return self.ring.next_avail

    @property
    def used_index(self):
        """The index up to which chains were given back."""
        return self.ring.used_index

    cdef _chain(self, ring_chain *chain):
        pieces = [
            (<uintptr_t>chain.pieces[i].iov_base, chain.pieces[i].iov_len)
            for i in range(chain.out_count + chain.in_count)
        ]
        return chain.head, pieces[: chain.out_count], pieces[chain.out_count :]

    cdef _check(self):
        if self.ring.fault:
            raise RingBroken(ring_fault_text[self.ring.fault].decode())

    def pop(self):
        """Return the next chain's head, readable and writable pieces (address, length), or None.

        Raise ``RingBroken`` once the driver has broken the ring.
        """
        cdef ring_chain chain
        chain.pieces = self.pieces
        cdef int result = vring_pop(&self.ring, &chain)
        self._check()
        return self._chain(&chain) if result > 0 else None

    def walk(self, uint16_t head):
        """Return the chain that begins at a recovered head."""
        cdef ring_chain chain
        chain.pieces = self.pieces
        vring_walk(&self.ring, head, &chain)
        self._check()
        return self._chain(&chain)

    def unpop(self, uint16_t head):
        """Put back the chain that was taken last."""
        vring_unpop(&self.ring, head)

    def push(self, uint16_t head, uint32_t written):
        """Note a chain as done."""
        vring_push(&self.ring, head, written)

    def publish(self):
        """Show the driver what was pushed; return whether it is to be signalled."""
        vring_publish(&self.ring)
        return vring_should_notify(&self.ring)

    def disable_kicks(self):
        """Ask for no kicks."""
        vring_disable_kicks(&self.ring)

    def enable_kicks(self):
        """Ask for a kick; return whether there is something to do already."""
        return vring_enable_kicks(&self.ring)

    def retire_log(self):
        """End the use of the in-flight log with nothing in flight."""
        vring_retire_log(&self.ring)
