# cython: language_level=3, boundscheck=False, binding=False, emit_code_comments=False
"""Packets between virtqueues and a tap; what runs is C, in a thread of its own for each pair."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from kvmpv.dataplane.ring cimport (
    guest_memory, memory_add, ring_fault_text, vring, vring_init,
)

import os

from kvmpv.errors import BadInput, HostError


cdef extern from "bucket.h" nogil:
    struct bucket:
        pass

    struct limits:
        bucket operations
        bucket bytes

    void bucket_set(bucket *bucket, uint64_t rate, uint64_t burst)


cdef extern from "net.h" nogil:
    struct net_counters:
        uint64_t packets
        uint64_t bytes
        uint64_t drops
        uint64_t kicks
        uint64_t calls
        uint64_t syscalls
        uint64_t sleeps

    struct net_pair:
        int tap
        int stop
        int kicks
        int all
        bint running

    struct net_queue:
        vring ring
        limits *limits
        net_pair *pair
        net_counters counters
        int kick
        int call
        int err
        int broken
        bint transmit
        bint mergeable
        bint discard
        bint served
        uint8_t header

    int net_open(net_pair *pair)
    void net_close(net_pair *pair)
    int net_start(net_queue *queue)
    void net_stop(net_queue *queue)


cdef class Plane:
    """What the queues of one device share: guest memory, and limits for each direction."""

    cdef guest_memory memory
    cdef limits to_guest
    cdef limits from_guest

    def __cinit__(self):
        memset(&self.memory, 0, sizeof(self.memory))
        memset(&self.to_guest, 0, sizeof(self.to_guest))
        memset(&self.from_guest, 0, sizeof(self.from_guest))

    def set_memory(self, regions):
        """Take the guest's memory: (guest address, size, our address); no queue runs.

        Raise ``BadInput`` for regions that overlap or wrap.
        """
        cdef uintptr_t where
        memset(&self.memory, 0, sizeof(self.memory))
        for gpa, size, address in regions:
            where = address
            if not memory_add(&self.memory, gpa, size, <uint8_t *>where):
                raise BadInput(f"memory region at {gpa:#x} wraps or overlaps, or is one too many")

    def set_log(self, uintptr_t address, uint64_t size):
        """Mark what is written in a dirty log from now on; 0 and 0: no more. No queue runs."""
        self.memory.dirty = <uint8_t *>address
        self.memory.dirty_bytes = size

    def limit(self, uint64_t bps, uint64_t bps_burst, uint64_t pps, uint64_t pps_burst):
        """Limit each direction to bytes and packets a second; 0: no limit, or a burst of 0.1 s."""
        self._limit(&self.to_guest, bps, bps_burst, pps, pps_burst)
        self._limit(&self.from_guest, bps, bps_burst, pps, pps_burst)

    cdef _limit(self, limits *of, uint64_t bps, uint64_t bps_burst, uint64_t pps,
                uint64_t pps_burst):
        bucket_set(&of.bytes, bps, bps_burst or bps // 10 + 1)
        bucket_set(&of.operations, pps, pps_burst or pps // 10 + 1)


cdef class Pair:
    """A tap, and the thread that carries between it and two queues; the tap stays the caller's.

    Raise ``HostError`` without descriptors.
    """

    cdef net_pair pair
    cdef Plane plane

    def __cinit__(self):
        memset(&self.pair, 0, sizeof(self.pair))
        self.pair.stop = self.pair.kicks = self.pair.all = -1

    def __init__(self, Plane plane, int tap):
        self.plane = plane
        self.pair.tap = tap
        error = net_open(&self.pair)
        if error:
            raise HostError(f"cannot serve a tap: {os.strerror(-error)}")

    def __dealloc__(self):
        net_close(&self.pair)  # its queues, which refer to it, are gone


cdef class Queue:
    """One queue between a driver and a pair's tap; descriptors stay the caller's, and stay open.

    ``transmit`` says which way; ``header`` is the length of the virtio-net header; ``broken`` an
    eventfd that is told when the driver has broken the ring, ``err`` the front end's for the same.
    Raise ``BadInput`` for a ring that does not lie in memory.
    """

    cdef net_queue *queue
    cdef Pair pair

    def __init__(self, Pair pair, bint transmit, uint32_t size, uintptr_t desc,
                 uintptr_t avail, uintptr_t used, uint64_t features=0, int base=-1, int kick=-1,
                 int call=-1, int err=-1, int broken=-1, int header=12, bint mergeable=True):
        self.pair = pair
        self.queue = <net_queue *>calloc(1, sizeof(net_queue))
        if self.queue == NULL:
            raise MemoryError
        self.queue.pair = &pair.pair
        self.queue.transmit = transmit
        self.queue.mergeable = mergeable
        self.queue.header = header
        self.queue.kick = kick
        self.queue.call = call
        self.queue.err = err
        self.queue.broken = broken
        self.queue.limits = &pair.plane.from_guest if transmit else &pair.plane.to_guest
        if not self._place(size, desc, avail, used, features, base if base >= 0 else 0):
            raise BadInput("a ring of that size does not lie in guest memory there")
        if base < 0:  # it is used in order: what is used was taken, and nothing else was
            self._place(size, desc, avail, used, features, self.queue.ring.used_index)

    cdef bint _place(self, uint32_t size, uintptr_t desc, uintptr_t avail, uintptr_t used,
                     uint64_t features, uint16_t base):
        return vring_init(&self.queue.ring, &self.pair.plane.memory, size, <void *>desc,
                          <void *>avail, <void *>used, features, base)

    def __dealloc__(self):
        if self.queue != NULL:
            with nogil:
                net_stop(self.queue)
            free(self.queue)

    def start(self):
        """Serve the queue, from where it was stopped; it is looked at once at first.

        Raise ``HostError`` when its thread cannot be started, or another queue has its place.
        """
        cdef int error
        with nogil:
            error = net_start(self.queue)
        if error:
            raise HostError(f"cannot serve a queue: {os.strerror(-error)}")

    def stop(self):
        """Serve it no more; return the index of the next available entry.

        The pair's other queue counts as broken if no thread can be started to go on with it.
        """
        with nogil:
            net_stop(self.queue)
        return self.queue.ring.next_avail

    @property
    def stalled(self):
        """Whether it is to be served, and no thread could be started for that."""
        return self.queue.served and not self.pair.pair.running

    @property
    def discard(self):
        """Whether what the driver sends is lost, for the queue is not enabled."""
        return self.queue.discard

    @discard.setter
    def discard(self, bint wanted):
        self.queue.discard = wanted

    @property
    def fault(self):
        """How the driver broke the ring, in a few words; "": it did not."""
        if not self.queue.ring.fault:
            return ""
        return ring_fault_text[self.queue.ring.fault].decode()

    @property
    def counters(self):
        """What was counted so far, by name."""
        return dict(self.queue.counters)
