# cython: language_level=3, boundscheck=False, binding=False, emit_code_comments=False
"""A block device and the threads of its queues; policy and set-up are kvmpv/dom0/block.py's."""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset, strerror

from kvmpv.dataplane.ring cimport (
    guest_memory, inflight_log, memory_add, ring_fault_text, vring, vring_init, vring_recover
)
from kvmpv.errors import HostError


cdef extern from "bucket.h" nogil:
    struct bucket:
        uint64_t rate

    struct limits:
        bucket operations
        bucket bytes

    void bucket_set(bucket *bucket, uint64_t rate, uint64_t burst)
    uint64_t bucket_take(bucket *bucket, uint64_t now, uint64_t tokens)


cdef extern from "uring.h" nogil:
    struct uring:
        uint64_t syscalls


cdef extern from "block_loop.h" nogil:
    enum:
        BLOCK_QUEUES
        FILE_IMAGE
        FILE_OVERLAY

    struct block_counters:
        uint64_t reads, writes, flushes, discards, others, read_bytes, written_bytes
        uint64_t kicks, calls, syscalls, sleeps, lingers
        uint64_t errors, bounced, throttled, replayed, resumed

    struct block_device:
        guest_memory memory
        int files[2]
        uint64_t capacity
        uint32_t memory_align, offset_align
        bint read_only, block_special, unsafe, write_through, discard
        uint8_t id[20]
        limits *limits
        uint64_t *written
        uint64_t poll_max_ns
        int events
        uint64_t told_errors[4]
        int last_error, last_kind
        uint64_t last_sector

    struct block_queue:
        vring ring
        uring uring
        block_counters counters
        bint enabled
        int kick, call, err
        uint16_t *replay
        uint32_t replay_count

    block_queue *block_queue_new(block_device *device, uint32_t size)
    void block_queue_free(block_queue *queue)
    int block_queue_start(block_queue *queue)
    uint16_t block_queue_stop(block_queue *queue)
    void block_queue_enable(block_queue *queue, bint enabled)
    void block_queue_pause(block_queue *queue, bint paused)


cdef extern from *:
    """
    #include <fcntl.h>
    #include <sys/syscall.h>

    /* What O_DIRECT wants of a file, where the kernel tells (Linux 6.1): 0 or -1. */
    static int block_direct_alignment(int fd, uint32_t *memory, uint32_t *offset)
    {
        /* struct statx has the two since then, the C library's header perhaps not. */
        union { uint8_t bytes[256]; uint32_t words[64]; } state = { { 0 } };

        if (syscall(SYS_statx, fd, "", 0x1000 /* AT_EMPTY_PATH */, 0x2000 /* STATX_DIOALIGN */,
                    state.bytes) < 0 || !(state.words[0] & 0x2000))
            return -1;
        *memory = state.words[38];
        *offset = state.words[39];
        return 0;
    }
    """
    int block_direct_alignment(int fd, uint32_t *memory, uint32_t *offset) nogil


def direct_alignment(int fd):
    """Return the multiples that O_DIRECT wants of (addresses, offsets); zeroes: it is not known."""
    cdef uint32_t memory = 0
    cdef uint32_t offset = 0
    block_direct_alignment(fd, &memory, &offset)
    return memory, offset


_KINDS = ("read", "write", "flush", "discard", "write of zeroes")
_COUNTERS = (
    "reads", "writes", "flushes", "discards", "others", "read_bytes", "written_bytes",
    "kicks", "calls", "syscalls", "sleeps", "lingers",
    "errors", "bounced", "throttled", "replayed", "resumed",
)


cdef class Limits:
    """Token buckets of operations and bytes a second, shared by all devices that are given them."""

    cdef limits buckets

    def __cinit__(self):
        memset(&self.buckets, 0, sizeof(self.buckets))

    def set_operations(self, uint64_t rate, uint64_t burst):
        """Allow ``rate`` operations a second, ``burst`` at once; a rate of 0 is no limit."""
        bucket_set(&self.buckets.operations, rate, burst)

    def set_bytes(self, uint64_t rate, uint64_t burst):
        """Allow ``rate`` bytes a second, ``burst`` at once; a rate of 0 is no limit."""
        bucket_set(&self.buckets.bytes, rate, burst)

    def take_operations(self, uint64_t now_ns, uint64_t tokens):
        """Take tokens as a queue does; return 0, or the nanoseconds to wait."""
        return bucket_take(&self.buckets.operations, now_ns, tokens)


cdef class Disk:
    """A device of ``sectors`` sectors over open files, which stay their owner's.

    ``image`` -1 is the null device. ``overlay`` and ``bitmap`` (its mapped bits) make it a throw-away
    disk. ``events`` is an eventfd that is written when there is an error or a fault to look at.
    """

    cdef block_device device
    cdef block_queue *queues[64]
    cdef block_counters gone
    cdef object limits
    cdef Py_buffer bitmap
    cdef bint has_bitmap

    def __cinit__(self):
        memset(&self.device, 0, sizeof(self.device))
        memset(&self.gone, 0, sizeof(self.gone))
        memset(self.queues, 0, sizeof(self.queues))

    def __init__(self, int image, uint64_t sectors, int events, bytes serial=b"", *,
                 bint read_only=False, bint unsafe=False, bint discard=True,
                 uint32_t memory_align=1, uint32_t offset_align=1, int overlay=-1,
                 bitmap=None, uint64_t poll_max_ns=64000):
        self.device.files[FILE_IMAGE] = image
        self.device.files[FILE_OVERLAY] = overlay
        if bitmap is not None:
            PyObject_GetBuffer(bitmap, &self.bitmap, PyBUF_WRITABLE)
            self.has_bitmap = True
            self.device.written = <uint64_t *>self.bitmap.buf
        self.device.capacity = sectors
        self.device.events = events
        self.device.read_only = read_only
        self.device.unsafe = unsafe
        self.device.discard = discard
        self.device.memory_align = memory_align
        self.device.offset_align = offset_align
        self.device.poll_max_ns = poll_max_ns
        serial = serial[:20]
        memcpy(self.device.id, <const char *>serial, len(serial))

    def set_memory(self, regions):
        """Take the guest's memory as (guest address, size, our address); no queue runs."""
        cdef uintptr_t address
        memset(&self.device.memory, 0, sizeof(self.device.memory))
        for gpa, size, where in regions:
            address = where
            if not memory_add(&self.device.memory, gpa, size, <uint8_t *>address):
                raise HostError(f"guest memory at {gpa:#x} cannot be taken")

    def set_image(self, int image):
        """Take another descriptor for the image; before the first queue starts."""
        self.device.files[FILE_IMAGE] = image

    def set_capacity(self, uint64_t sectors):
        """Change the size, at once."""
        self.device.capacity = sectors

    def set_write_through(self, bint on):
        """Have each write on the disk before it is done, from the next request on."""
        self.device.write_through = on

    def set_limits(self, Limits limits):
        """Share token buckets with other disks; before the first queue starts."""
        self.limits = limits
        self.device.limits = &limits.buckets

    def start(self, int index, uint32_t size, uintptr_t desc, uintptr_t avail, uintptr_t used,
              uint64_t features, uint16_t base, uintptr_t log, int kick, int call, int err,
              bint enabled):
        """Serve a queue in a thread of its own, what ``log`` has in flight first.

        Raise ``HostError`` when the ring is none, or there is no thread or io_uring to be had.
        """
        cdef block_queue *queue
        cdef int error
        if not 0 <= index < BLOCK_QUEUES or self.queues[index]:
            raise HostError(f"queue {index} cannot be started")
        queue = block_queue_new(&self.device, size)
        if not queue:
            raise HostError(f"queue {index}: no memory")
        if not vring_init(&queue.ring, &self.device.memory, size, <void *>desc, <void *>avail,
                          <void *>used, features, base):
            block_queue_free(queue)
            raise HostError(f"queue {index} does not lie in guest memory")
        if log:
            # A log that makes no sense breaks the ring: the thread tells of it.
            queue.replay_count = max(
                0, vring_recover(&queue.ring, <inflight_log *>log, queue.replay))
        queue.kick = kick
        queue.call = call
        queue.err = err
        queue.enabled = enabled
        with nogil:
            error = block_queue_start(queue)
        if error:
            block_queue_free(queue)
            raise HostError(f"queue {index}: io_uring: {strerror(-error).decode()}",
                            hint="see /proc/sys/kernel/io_uring_disabled")
        self.queues[index] = queue

    def running(self, int index):
        """Whether a queue runs."""
        return self.queues[index] is not NULL

    def stop(self, int index):
        """Finish what is in flight, end the thread, return the next available index."""
        cdef block_queue *queue = self.queues[index]
        cdef uint16_t base
        if not queue:
            raise HostError(f"queue {index} does not run")
        with nogil:
            base = block_queue_stop(queue)
        self.queues[index] = NULL
        _add(&self.gone, queue)
        block_queue_free(queue)
        return base

    def enable(self, int index, bint enabled):
        """Let a queue take requests or not."""
        if self.queues[index]:
            block_queue_enable(self.queues[index], enabled)

    def pause(self, bint paused):
        """Take no more requests and return once none is in work; or go on."""
        cdef block_queue *queue
        for index in range(BLOCK_QUEUES):
            queue = self.queues[index]
            if queue:
                with nogil:
                    block_queue_pause(queue, paused)

    def faults(self):
        """Return how queues are broken, by their index."""
        return {
            index: ring_fault_text[self.queues[index].ring.fault].decode()
            for index in range(BLOCK_QUEUES)
            if self.queues[index] and self.queues[index].ring.fault
        }

    def error(self):
        """Return the last kind of error that is to be told: (errno, what, sector), or None."""
        cdef int error = self.device.last_error
        if not error:
            return None
        self.device.last_error = 0
        return error, _KINDS[self.device.last_kind], self.device.last_sector

    def counters(self):
        """Return all that is counted, over all queues there are and were."""
        cdef block_counters total = self.gone
        for index in range(BLOCK_QUEUES):
            if self.queues[index]:
                _add(&total, self.queues[index])
        cdef uint64_t *value = <uint64_t *>&total
        return {name: value[i] for i, name in enumerate(_COUNTERS)}

    def __dealloc__(self):
        for index in range(BLOCK_QUEUES):
            if self.queues[index]:
                block_queue_stop(self.queues[index])
                block_queue_free(self.queues[index])
        if self.has_bitmap:
            PyBuffer_Release(&self.bitmap)


cdef void _add(block_counters *total, block_queue *queue) noexcept nogil:
    cdef uint64_t *to = <uint64_t *>total
    cdef uint64_t *more = <uint64_t *>&queue.counters
    for i in range(sizeof(block_counters) // sizeof(uint64_t)):
        to[i] += more[i]
    total.syscalls += queue.uring.syscalls
