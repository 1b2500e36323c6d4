"""The declarations of ring.h and memory.h, for the compiled loops."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len


cdef extern from "memory.h" nogil:
    enum:
        MEMORY_MAX_REGIONS

    struct guest_memory:
        uint32_t count
        uint8_t *dirty
        uint64_t dirty_bytes

    bint memory_add(guest_memory *memory, uint64_t gpa, uint64_t size, uint8_t *address)
    bint memory_holds(const guest_memory *memory, const void *address, uint64_t length)
    void memory_mark(const guest_memory *memory, const void *address, uint64_t length)
    void store8(const guest_memory *memory, void *to, uint8_t value)
    void store16(const guest_memory *memory, void *to, uint16_t value)
    void store32(const guest_memory *memory, void *to, uint32_t value)
    size_t store_bytes(const guest_memory *memory, const iovec *pieces, uint32_t count,
                       size_t skip, const void *source, size_t length)
    void store_done_by_kernel(const guest_memory *memory, const iovec *pieces, uint32_t count,
                              size_t length)
    size_t load_bytes(const iovec *pieces, uint32_t count, size_t skip, void *target,
                      size_t length)


cdef extern from "ring.h" nogil:
    enum:
        RING_MAX_SIZE
        RING_MAX_PIECES
        RING_FAULTS
        RING_REQUEST

    struct inflight_log:
        uint16_t version

    struct vring:
        uint16_t size
        uint16_t next_avail
        uint16_t used_index
        uint16_t published
        uint8_t fault

    struct ring_chain:
        iovec *pieces
        uint16_t head
        uint16_t out_count
        uint16_t in_count
        uint64_t out_bytes
        uint64_t in_bytes

    const char **ring_fault_text
    uint64_t inflight_bytes(uint32_t size)
    bint vring_init(vring *ring, const guest_memory *memory, uint32_t size, void *desc,
                    void *avail, void *used, uint64_t features, uint16_t base)
    int vring_recover(vring *ring, inflight_log *log, uint16_t *heads)
    void vring_retire_log(vring *ring)
    int vring_walk(vring *ring, uint16_t head, ring_chain *chain)
    int vring_pop(vring *ring, ring_chain *chain)
    void vring_unpop(vring *ring, uint16_t head)
    void vring_push(vring *ring, uint16_t head, uint32_t written)
    void vring_publish(vring *ring)
    bint vring_should_notify(vring *ring)
    void vring_disable_kicks(vring *ring)
    bint vring_enable_kicks(vring *ring)
    int ring_break(vring *ring, int fault)
