/* SPDX-License-Identifier: MIT */
/*
 * A split virtqueue (virtio 1.2, section 2.7), the device's side, with the
 * in-flight log of vhost-user. kvmpv/virtio/ring.py is the same in plain Python,
 * and tests hold the two together.
 *
 * The driver is hostile. What it gets wrong breaks the ring: `fault` says how,
 * nothing more is taken from it, and the rest of the process never notices.
 *
 * A device's thread calls, in this order: vring_init, vring_recover if there is a
 * log; then vring_pop until it is empty, vring_push for each chain that is done,
 * vring_publish, and a signal to the driver if vring_should_notify says so.
 */
#ifndef KVMPV_DATAPLANE_RING_H
#define KVMPV_DATAPLANE_RING_H

#include <stdlib.h>

#include "memory.h"

#define RING_MAX_SIZE 32768
/* The most pieces of one chain, and what readv takes. An indirect chain may be longer than the
 * queue, though drivers should not (2.7.5.3.1): Linux's block driver makes such where the queue is
 * small. */
#define RING_MAX_PIECES 1024

#define RING_F_INDIRECT_DESC (1ULL << 28)
#define RING_F_EVENT_IDX (1ULL << 29)

#define DESC_NEXT 1
#define DESC_WRITE 2
#define DESC_INDIRECT 4

#define AVAIL_NO_INTERRUPT 1
#define USED_NO_NOTIFY 1

enum ring_fault {
	RING_SOUND,
	RING_AVAIL_JUMP,	/* more made available than the queue holds */
	RING_HEAD_RANGE,	/* a descriptor's number is not below the queue's size */
	RING_LOOP,		/* a chain is longer than its table */
	RING_TOO_LONG,		/* a chain has more pieces than we take */
	RING_ADDRESS,		/* a buffer does not lie in guest memory */
	RING_EMPTY_BUFFER,	/* a descriptor of no bytes */
	RING_ORDER,		/* a piece to be read behind one to be written */
	RING_INDIRECT_TABLE,	/* its size or place is wrong, or it was not negotiated */
	RING_INDIRECT_NESTED,	/* an indirect descriptor in an indirect table, or in a chain */
	RING_TOO_BIG,		/* a chain of 4 GiB or more */
	RING_TAKEN,		/* a head that is in flight is made available again */
	RING_LOG,		/* the in-flight log makes no sense */
	RING_REQUEST,		/* the device's own: a chain that is no request */
	RING_FAULTS
};

struct ring_desc {
	uint64_t address;
	uint32_t length;
	uint16_t flags;
	uint16_t next;
};

struct ring_avail {
	uint16_t flags;
	uint16_t index;
	uint16_t ring[];	/* and behind it used_event */
};

struct ring_used_entry {
	uint32_t head;
	uint32_t written;
};

struct ring_used {
	uint16_t flags;
	uint16_t index;
	struct ring_used_entry ring[];	/* and behind it avail_event */
};

/* The in-flight log of one queue, as QEMU's "Vhost-user Protocol" lays it out. */
struct inflight_desc {
	uint8_t inflight;
	uint8_t padding[5];
	uint16_t next;
	uint64_t counter;
};

struct inflight_log {
	uint64_t features;
	uint16_t version;	/* 1; 0: nothing has ever used it */
	uint16_t desc_num;
	uint16_t last_batch_head;
	uint16_t used_index;
	struct inflight_desc desc[];
};

struct vring {
	const struct guest_memory *memory;
	const struct ring_desc *desc;
	const struct ring_avail *avail;
	struct ring_used *used;
	struct inflight_log *log;	/* NULL: nobody replays */
	uint64_t counter;
	const struct memory_region *region;	/* found last */
	uint16_t size;
	uint16_t mask;
	uint16_t next_avail;	/* the next to take */
	uint16_t avail_seen;	/* how far we know the driver to be */
	uint16_t used_index;	/* pushed up to here */
	uint16_t published;	/* shown to the driver up to here */
	uint16_t signalled;	/* where the driver was last thought of */
	bool signalled_ever;
	bool indirect;
	bool event_index;
	uint8_t fault;
};

/* A chain: first the pieces that the device reads, then those that it writes. */
struct ring_chain {
	struct iovec *pieces;	/* the caller's, RING_MAX_PIECES of them */
	uint16_t head;
	uint16_t out_count;
	uint16_t in_count;
	uint64_t out_bytes;
	uint64_t in_bytes;
};

static const char *const ring_fault_text[RING_FAULTS] = {
	"sound",
	"available index jumps",
	"descriptor out of range",
	"chain loops",
	"chain too long",
	"buffer outside memory",
	"empty buffer",
	"readable behind writable",
	"bad indirect table",
	"nested indirect table",
	"chain too big",
	"head is in flight already",
	"in-flight log makes no sense",
	"chain is no request",
};

static inline int ring_break(struct vring *ring, enum ring_fault fault)
{
	if (!ring->fault)
		ring->fault = fault;
	return -1;
}

/* ---- set-up */

static inline uint64_t ring_desc_bytes(uint32_t size)
{
	return 16ULL * size;
}

static inline uint64_t ring_avail_bytes(uint32_t size)
{
	return 6 + 2ULL * size;
}

static inline uint64_t ring_used_bytes(uint32_t size)
{
	return 6 + 8ULL * size;
}

static inline uint64_t inflight_bytes(uint32_t size)
{
	return (sizeof(struct inflight_log) + sizeof(struct inflight_desc) * size + 63) & ~63ULL;
}

/*
 * Set a ring up at addresses of ours, which must lie in guest memory; the next
 * available entry is `base`. False when size, alignment or place is wrong.
 */
static inline bool vring_init(struct vring *ring, const struct guest_memory *memory, uint32_t size,
			      void *desc, void *avail, void *used, uint64_t features,
			      uint16_t base)
{
	memset(ring, 0, sizeof(*ring));
	if (!size || size > RING_MAX_SIZE || size & (size - 1))
		return false;
	if ((uintptr_t)desc % 16 || (uintptr_t)avail % 2 || (uintptr_t)used % 4)
		return false;
	if (!memory_holds(memory, desc, ring_desc_bytes(size)) ||
	    !memory_holds(memory, avail, ring_avail_bytes(size)) ||
	    !memory_holds(memory, used, ring_used_bytes(size)))
		return false;
	ring->memory = memory;
	ring->region = memory->regions;
	ring->desc = desc;
	ring->avail = avail;
	ring->used = used;
	ring->size = size;
	ring->mask = size - 1;
	ring->indirect = features & RING_F_INDIRECT_DESC;
	ring->event_index = features & RING_F_EVENT_IDX;
	ring->used_index = ring->published = ring->signalled = load16(&ring->used->index);
	ring->next_avail = ring->avail_seen = base;
	return true;
}

/* ---- the in-flight log */

struct inflight_entry {
	uint64_t counter;
	uint16_t head;
};

static inline int inflight_compare(const void *left, const void *right)
{
	const struct inflight_entry *a = left, *b = right;

	if (a->counter != b->counter)
		return a->counter < b->counter ? -1 : 1;
	return (int)a->head - (int)b->head;
}

/* Forget, in the log, the last `count` heads that were pushed. */
static inline int inflight_clear_batch(struct vring *ring, uint16_t count)
{
	uint16_t head = load16(&ring->log->last_batch_head);

	while (count--) {
		if (head >= ring->size)
			return ring_break(ring, RING_LOG);
		__atomic_store_n(&ring->log->desc[head].inflight, 0, __ATOMIC_RELEASE);
		head = load16(&ring->log->desc[head].next);
	}
	return 0;
}

/*
 * Use a log from now on; it has inflight_bytes(size) bytes. Return how many
 * chains a predecessor left in flight, their heads in `heads` in the order in
 * which they were taken, or -1: the ring is broken. `heads` has room for `size`.
 */
static inline int vring_recover(struct vring *ring, struct inflight_log *log, uint16_t *heads)
{
	struct inflight_entry *entries;
	uint16_t batch;
	int count = 0, i;

	ring->log = log;
	if (!log->version) {
		log->features = 0;
		log->desc_num = ring->size;
		log->last_batch_head = 0;
		log->used_index = ring->used_index;
		memset(log->desc, 0, sizeof(log->desc[0]) * ring->size);
		__atomic_store_n(&log->version, 1, __ATOMIC_RELEASE);
		return 0;
	}
	if (log->version != 1 || log->desc_num != ring->size)
		return ring_break(ring, RING_LOG);
	batch = ring->used_index - log->used_index;
	if (batch > ring->size)
		return ring_break(ring, RING_LOG);
	if (inflight_clear_batch(ring, batch))
		return -1;
	log->used_index = ring->used_index;
	entries = calloc(ring->size, sizeof(*entries));
	if (!entries)
		return ring_break(ring, RING_LOG);
	for (i = 0; i < ring->size; i++) {
		if (log->desc[i].inflight != 1)
			continue;
		entries[count].counter = load64(&log->desc[i].counter);
		entries[count++].head = i;
	}
	qsort(entries, count, sizeof(*entries), inflight_compare);
	for (i = 0; i < count; i++)
		heads[i] = entries[i].head;
	if (count)
		ring->counter = entries[count - 1].counter + 1;
	free(entries);
	/* All that was taken and has not been given back is in the log. */
	ring->next_avail = ring->avail_seen = ring->used_index + count;
	return count;
}

/* End the use of a log after which nothing is in flight: the next user finds it new. */
static inline void vring_retire_log(struct vring *ring)
{
	if (ring->log)
		__atomic_store_n(&ring->log->version, 0, __ATOMIC_RELEASE);
	ring->log = NULL;
}

/* ---- taking chains */

/* Where a walk through a chain is; it all stays in registers. */
struct ring_walk {
	const uint8_t *table;
	uint32_t entries;
	uint32_t left;
	const struct memory_region *region;	/* found last */
	uint32_t count;		/* of pieces, and of those how many came before the first to write */
	uint32_t out_count;
	uint64_t bytes;		/* the same of bytes */
	uint64_t out_bytes;
};

/* Take the rest of a buffer that goes on in other memory regions; our address of where it is. */
static __attribute__((noinline, cold)) enum ring_fault
ring_append_rest(const struct guest_memory *memory, struct iovec *pieces,
		 const struct memory_region **hint, uint32_t *count, uint64_t gpa, uint64_t left)
{
	while (left) {
		uint64_t run;
		uint8_t *address = memory_at(memory, hint, gpa, left, &run);

		if (!address)
			return RING_ADDRESS;
		if (*count == RING_MAX_PIECES)
			return RING_TOO_LONG;
		pieces[*count].iov_base = address;
		pieces[(*count)++].iov_len = run;
		gpa += run;
		left -= run;
	}
	return RING_SOUND;
}

/* Append one descriptor's buffer to the chain, cut where memory regions meet. */
static inline __attribute__((always_inline)) enum ring_fault
ring_append(const struct guest_memory *memory, struct iovec *pieces, struct ring_walk *walk,
	    uint64_t gpa, uint32_t length)
{
	const struct memory_region *region = walk->region;
	uint64_t offset = gpa - region->gpa;

	if (seldom(!length))
		return RING_EMPTY_BUFFER;
	walk->bytes += length;
	if (seldom(offset >= region->size || region->size - offset < length)) {
		const struct memory_region *hint = walk->region;
		uint32_t count = walk->count;
		enum ring_fault fault =
			ring_append_rest(memory, pieces, &hint, &count, gpa, length);

		walk->region = hint;
		walk->count = count;
		return fault;
	}
	if (seldom(walk->count == RING_MAX_PIECES))
		return RING_TOO_LONG;
	pieces[walk->count].iov_base = region->address + offset;
	pieces[walk->count].iov_len = length;
	walk->count++;
	return RING_SOUND;
}

/* Go from the ring's table into an indirect one (2.7.5.3). */
static inline enum ring_fault ring_enter_indirect(const struct vring *ring, struct ring_walk *walk,
						  uint64_t gpa, uint32_t length, uint16_t flags)
{
	const struct memory_region *hint = walk->region;
	uint64_t run;

	if (!ring->indirect || !length || length % 16 || length / 16 > RING_MAX_PIECES)
		return RING_INDIRECT_TABLE;
	if (flags & DESC_NEXT)
		return RING_INDIRECT_NESTED;
	walk->table = memory_at(ring->memory, &hint, gpa, length, &run);
	if (!walk->table || run != length)
		return RING_INDIRECT_TABLE;
	walk->region = hint;
	walk->entries = walk->left = length / 16;
	return RING_SOUND;
}

static inline __attribute__((always_inline)) enum ring_fault
ring_collect(const struct vring *ring, struct iovec *pieces, struct ring_walk *walk, uint32_t i)
{
	const struct guest_memory *memory = ring->memory;
	bool in_indirect = false, writable = false;

	for (;;) {
		const uint8_t *at = walk->table + 16 * (uint64_t)i;
		enum ring_fault fault;
		uint64_t gpa, rest;
		uint16_t flags;

		if (seldom(i >= walk->entries))
			return RING_HEAD_RANGE;
		if (seldom(!walk->left--))
			return RING_LOOP;
		gpa = load64(at);
		rest = load64(at + 8);
		flags = rest >> 32;
		if (flags & DESC_INDIRECT) {
			if (in_indirect || walk->count)
				return RING_INDIRECT_NESTED;
			fault = ring_enter_indirect(ring, walk, gpa, (uint32_t)rest, flags);
			if (fault)
				return fault;
			in_indirect = true;
			i = 0;
			continue;
		}
		if (flags & DESC_WRITE) {
			if (!writable) {
				walk->out_count = walk->count;
				walk->out_bytes = walk->bytes;
			}
			writable = true;
		} else if (seldom(writable)) {
			return RING_ORDER;
		}
		fault = ring_append(memory, pieces, walk, gpa, (uint32_t)rest);
		if (seldom(fault))
			return fault;
		if (!(flags & DESC_NEXT))
			break;
		i = rest >> 48;
	}
	if (!writable) {
		walk->out_count = walk->count;
		walk->out_bytes = walk->bytes;
	}
	return seldom(walk->bytes > UINT32_MAX) ? RING_TOO_BIG : RING_SOUND;
}

/* Collect the chain that begins at `head`: 0, or -1 and the ring is broken. */
static inline __attribute__((always_inline)) int
vring_walk(struct vring *ring, uint16_t head, struct ring_chain *chain)
{
	struct ring_walk walk = {
		.table = (const uint8_t *)ring->desc,
		.entries = ring->size,
		.left = ring->size,
		.region = ring->region,
	};
	enum ring_fault fault = ring_collect(ring, chain->pieces, &walk, head);

	if (seldom(fault))
		return ring_break(ring, fault);
	ring->region = walk.region;
	chain->head = head;
	chain->out_count = walk.out_count;
	chain->in_count = walk.count - walk.out_count;
	chain->out_bytes = walk.out_bytes;
	chain->in_bytes = walk.bytes - walk.out_bytes;
	return 0;
}

/* Say whether the driver has made something available; it may also have broken the ring. */
static inline bool vring_look(struct vring *ring)
{
	if (ring->next_avail != ring->avail_seen)
		return true;
	if (seldom(ring->fault))
		return false;
	ring->avail_seen = load16_acquire(&ring->avail->index);
	/* What is in flight counts: no more can be out than the queue has descriptors. */
	if (seldom((uint16_t)(ring->avail_seen - ring->used_index) > ring->size ||
		     (uint16_t)(ring->next_avail - ring->used_index) >
			     (uint16_t)(ring->avail_seen - ring->used_index))) {
		ring->avail_seen = ring->next_avail;
		ring_break(ring, RING_AVAIL_JUMP);
		return false;
	}
	return ring->next_avail != ring->avail_seen;
}

/* Take the next chain: 1, or 0 when there is none, or -1 when the ring is broken. */
static inline __attribute__((always_inline)) int
vring_pop(struct vring *ring, struct ring_chain *chain)
{
	uint16_t head;

	if (seldom(ring->fault))
		return -1;
	if (!vring_look(ring))
		return ring->fault ? -1 : 0;
	head = load16(&ring->avail->ring[ring->next_avail & ring->mask]);
	if (seldom(head >= ring->size))
		return ring_break(ring, RING_HEAD_RANGE);
	if (ring->log) {
		struct inflight_desc *entry = &ring->log->desc[head];

		if (seldom(entry->inflight))
			return ring_break(ring, RING_TAKEN);
		entry->counter = ring->counter++;
		__atomic_store_n(&entry->inflight, 1, __ATOMIC_RELEASE);
	}
	ring->next_avail++;
	return vring_walk(ring, head, chain) ? -1 : 1;
}

/* Put back the chain that was taken last. */
static inline void vring_unpop(struct vring *ring, uint16_t head)
{
	ring->next_avail--;
	if (ring->log)
		__atomic_store_n(&ring->log->desc[head].inflight, 0, __ATOMIC_RELEASE);
}

/* ---- giving chains back */

/* Note a chain as done, its first `written` writable bytes written; publish shows it. */
static inline void vring_push(struct vring *ring, uint16_t head, uint32_t written)
{
	struct ring_used_entry *entry = &ring->used->ring[ring->used_index & ring->mask];

	store32x2(ring->memory, entry, head, written);
	if (ring->log) {
		ring->log->desc[head].next = ring->log->last_batch_head;
		ring->log->last_batch_head = head;
	}
	ring->used_index++;
}

/* Show the driver all that was pushed. */
static inline void vring_publish(struct vring *ring)
{
	uint16_t batch = ring->used_index - ring->published;

	if (!batch)
		return;
	store16_release(ring->memory, &ring->used->index, ring->used_index);
	ring->published = ring->used_index;
	if (ring->log) {
		/* A log that another process spoils is that process's loss. */
		if (!inflight_clear_batch(ring, batch))
			__atomic_store_n(&ring->log->used_index, ring->used_index,
					 __ATOMIC_RELEASE);
	}
}

/* Say whether the driver wants a signal for what was published since the last call (2.7.7). */
static inline bool vring_should_notify(struct vring *ring)
{
	uint16_t now = ring->published, before = ring->signalled, event;
	bool first = !ring->signalled_ever;

	if (now == before)
		return false;
	/* The used index must be out before we look whether anybody waits for it. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	ring->signalled = now;
	ring->signalled_ever = true;
	if (!ring->event_index)
		return !(load16(&ring->avail->flags) & AVAIL_NO_INTERRUPT);
	event = load16(&ring->avail->ring[ring->size]);
	return first || (uint16_t)(now - event - 1) < (uint16_t)(now - before);
}

/* ---- whether the driver is to kick us */

static inline void vring_disable_kicks(struct vring *ring)
{
	/* An index that lies behind is not reached before 65535 more entries. */
	if (ring->event_index)
		store16(ring->memory, &ring->used->ring[ring->size],
			(uint16_t)(ring->next_avail - 1));
	else
		store16(ring->memory, &ring->used->flags, USED_NO_NOTIFY);
}

/* Ask for a kick; true when something came meanwhile, and nobody may go to sleep. */
static inline bool vring_enable_kicks(struct vring *ring)
{
	if (ring->event_index)
		store16(ring->memory, &ring->used->ring[ring->size], ring->next_avail);
	else
		store16(ring->memory, &ring->used->flags, 0);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return vring_look(ring) || ring->fault;
}

#endif
