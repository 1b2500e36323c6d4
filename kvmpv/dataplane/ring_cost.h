/* SPDX-License-Identifier: MIT */
/* What the ring alone costs: pop and push of chains of three descriptors. */
#ifndef KVMPV_DATAPLANE_RING_COST_H
#define KVMPV_DATAPLANE_RING_COST_H

#include <sys/mman.h>
#include <time.h>

#include "ring.h"

#define COST_SIZE 256
#define COST_BATCH 64
#define COST_ROUND 4096
#define COST_BYTES (1 << 20)

static inline uint64_t cost_clock(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ULL + now.tv_nsec;
}

/* The driver's half: header, data and status, as a block request has them. */
static inline void cost_make_available(uint8_t *memory, struct ring_avail *avail, uint16_t from)
{
	struct ring_desc *desc = (struct ring_desc *)memory;
	uint16_t i;

	for (i = 0; i < COST_BATCH; i++) {
		uint16_t head = (i * 3) % COST_SIZE;

		desc[head] = (struct ring_desc){ 0x10000, 16, DESC_NEXT, head + 1 };
		desc[head + 1] =
			(struct ring_desc){ 0x20000 + 4096 * i, 4096, DESC_NEXT | DESC_WRITE, head + 2 };
		desc[head + 2] = (struct ring_desc){ 0x11000 + i, 1, DESC_WRITE, 0 };
		avail->ring[(uint16_t)(from + i) % COST_SIZE] = head;
	}
	__atomic_store_n(&avail->index, (uint16_t)(from + COST_BATCH), __ATOMIC_RELEASE);
}

/*
 * Return how many picoseconds a request took, or -1: in the best of all rounds of
 * some thousand requests, for the machine may be doing other things.
 */
static inline int64_t ring_cost(uint64_t requests, bool with_log)
{
	static struct iovec pieces[RING_MAX_PIECES];
	static struct guest_memory table;
	struct ring_chain chain = { .pieces = pieces };
	uint8_t *memory = mmap(NULL, COST_BYTES, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	struct ring_avail *avail = (struct ring_avail *)(memory + 0x4000);
	struct inflight_log *log = (struct inflight_log *)(memory + 0xc000);
	uint16_t heads[COST_SIZE];
	uint64_t spent = 0, done = 0, best = UINT64_MAX;
	struct vring ring;

	if (memory == MAP_FAILED)
		return -1;
	memset(&table, 0, sizeof(table));
	memory_add(&table, 0, COST_BYTES, memory);
	if (!vring_init(&ring, &table, COST_SIZE, memory, avail, memory + 0x8000,
			RING_F_EVENT_IDX, 0))
		return -1;
	if (with_log && vring_recover(&ring, log, heads))
		return -1;
	while (done < requests || done < COST_ROUND) {
		uint64_t began;

		cost_make_available(memory, avail, (uint16_t)done);
		began = cost_clock();
		while (vring_pop(&ring, &chain) > 0) {
			vring_push(&ring, chain.head, 4097);
			done++;
		}
		vring_publish(&ring);
		vring_should_notify(&ring);
		spent += cost_clock() - began;
		if (done % COST_ROUND == 0) {
			best = spent < best ? spent : best;
			spent = 0;
		}
		if (ring.fault)
			break;
	}
	munmap(memory, COST_BYTES);
	return ring.fault ? -1 : (int64_t)(best * 1000 / COST_ROUND);
}

#endif
