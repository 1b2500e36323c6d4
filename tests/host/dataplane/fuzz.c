/* SPDX-License-Identifier: MIT */
/*
 * Junk against the ring and the block requests, under the address sanitizer:
 * each region of guest memory is an allocation of its own, so that one byte
 * beside it ends the run. `fuzz SECONDS [SEED]`; prints what it did.
 */
#define _GNU_SOURCE
#include <stdio.h>

#include "block_loop.h"

#define SIZE 8
#define REGIONS 3
#define FIRST_BYTES 0x3000

static const uint64_t gpas[REGIONS] = { 0, FIRST_BYTES, 1ULL << 32 };
static const uint64_t sizes[REGIONS] = { FIRST_BYTES, 0x1800, 0x1000 };

static uint64_t seed = 88172645463325252ULL;
static uint8_t *regions[REGIONS];
static struct block_device device;
static uint64_t pops, chains, faults[RING_FAULTS], requests, steps, answers[3];

static uint64_t junk(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

static uint64_t below(uint64_t limit)
{
	return junk() % limit;
}

static void die(const char *what)
{
	fprintf(stderr, "fuzz: %s\n", what);
	abort();
}

static uint64_t some_address(void)
{
	switch (below(8)) {
	case 0:
		return junk();
	case 1:
		return (uint64_t)0 - below(64);
	case 2:
		return FIRST_BYTES - below(600);
	case 3:
		return (1ULL << 32) + below(0x1100);
	case 4:
		return 0x1000 + 16 * below(16);
	default:
		return below(FIRST_BYTES + 0x1900);
	}
}

static uint32_t some_length(void)
{
	static const uint32_t usual[] = { 0, 1, 16, 17, 20, 32, 48, 512, 513, 1024, 4096 };

	return below(6) ? usual[below(sizeof(usual) / sizeof(usual[0]))] : (uint32_t)junk();
}

static void some_descriptors(uint8_t *at, uint32_t count)
{
	struct ring_desc *desc = (struct ring_desc *)at;
	uint32_t i;

	for (i = 0; i < count; i++) {
		desc[i].address = some_address();
		desc[i].length = some_length();
		desc[i].flags = below(20) ? below(4) : below(20) ? DESC_INDIRECT : junk();
		desc[i].next = below(16) ? below(SIZE) : junk();
	}
}

/* A chain that is nearly a request, so that the junk gets further. */
static void nearly_a_request(struct ring_desc *desc, uint32_t head)
{
	static const uint32_t kinds[] = { 0, 1, 4, 8, 11, 13, 2, 99 };
	struct block_header header = { kinds[below(8)], 0, below(4) ? below(70) : junk() };
	struct block_range range = { below(70), below(70), below(4) ? below(2) : junk() };
	bool write = header.type == 1 || header.type > 8;
	uint32_t i = head % SIZE, n = (i + 1) % SIZE, last = (i + 2) % SIZE;

	memcpy(regions[0] + 0x1800, &header, sizeof(header));
	memcpy(regions[0] + 0x1810, &range, sizeof(range));
	desc[i] = (struct ring_desc){ 0x1800, 16, DESC_NEXT, n };
	desc[n] = (struct ring_desc){ write ? 0x1810 : some_address(),
				      write && header.type > 8 ? 16 :
				      header.type == 8	       ? 20 :
								 512 * below(9),
				      DESC_NEXT | (write ? 0 : DESC_WRITE), last };
	desc[last] = (struct ring_desc){ 0x1900, 1, DESC_WRITE, 0 };
	if (!below(10))
		((uint8_t *)desc)[below(16 * SIZE)] = junk();
}

static void must_lie_in_memory(const struct iovec *pieces, uint32_t count)
{
	uint32_t i;

	for (i = 0; i < count; i++)
		if (!pieces[i].iov_len ||
		    !memory_holds(&device.memory, pieces[i].iov_base, pieces[i].iov_len))
			die("a piece outside of memory");
}

/* Answer the calls of a request as a kernel might. */
static void serve(const struct ring_chain *chain)
{
	static uint8_t bounce[BLOCK_BOUNCE_BYTES], zeroes[BLOCK_ZERO_BYTES];
	static struct block_request request;
	int status = request_parse(&device, &request, chain);

	if (status == REQUEST_BROKEN)
		return;
	requests++;
	if (!memory_holds(&device.memory, request.status_at, 1))
		die("a status outside of memory");
	while (status == REQUEST_GOES) {
		struct io_uring_sqe sqe = { 0 };
		int32_t result;

		if (request_is_free(&device, &request))
			break;
		if (request_wants_bounce(&device, &request))
			request.bounce = bounce;
		must_lie_in_memory(request.pieces, request.count);
		request_step(&device, &request, &sqe, zeroes);
		if (request.kind != REQUEST_FLUSH &&
		    (!request.step || request.step > request.left ||
		     request.offset + request.step > device.capacity * SECTOR))
			die("a step outside of the disk");
		steps++;
		result = below(8) ? (int32_t)request.step : (int32_t)below(request.step + 1);
		if (!below(16))
			result = -(int32_t)(1 + below(100));
		if (sqe.opcode == IORING_OP_FALLOCATE || sqe.opcode == IORING_OP_FSYNC)
			result = result < 0 ? result : 0;
		status = request_stepped(&device, &request, result);
	}
	if (status >= 0)
		answers[status < 3 ? status : 1]++;
	store8(&device.memory, request.status_at, status < 0 ? 0 : status);
}

static void one_ring(void)
{
	static struct iovec pieces[RING_MAX_PIECES];
	struct ring_avail *avail = (struct ring_avail *)(regions[0] + 0x400);
	struct ring_used *used = (struct ring_used *)(regions[0] + 0x800);
	struct inflight_log *log = malloc(inflight_bytes(SIZE));
	struct ring_chain chain = { .pieces = pieces };
	uint16_t heads[SIZE], base = below(4) ? 0 : junk(), out[64];
	uint32_t i, taken = 0;
	struct vring ring;

	memset(log, 0, inflight_bytes(SIZE));
	used->index = base;
	avail->index = base;
	if (!vring_init(&ring, &device.memory, SIZE, regions[0], avail, used,
			below(2) ? RING_F_INDIRECT_DESC | RING_F_EVENT_IDX : 0, base))
		die("the ring cannot be set up");
	if (below(2))
		vring_recover(&ring, log, heads);
	for (i = 0; i < 24 && !ring.fault; i++) {
		some_descriptors(regions[0], SIZE);
		some_descriptors(regions[0] + 0x1000, 16);
		avail->ring[ring.next_avail % SIZE] = below(10) ? below(SIZE) : junk();
		if (below(3))
			nearly_a_request((struct ring_desc *)regions[0],
					 avail->ring[ring.next_avail % SIZE]);
		avail->index = below(20) ? ring.next_avail + 1 : junk();
		avail->ring[SIZE] = junk();
		pops++;
		if (vring_pop(&ring, &chain) > 0) {
			chains++;
			must_lie_in_memory(chain.pieces, chain.out_count + chain.in_count);
			serve(&chain);
			out[taken++] = chain.head;
		}
		while (taken && below(2))
			vring_push(&ring, out[--taken], below(10000));
		if (ring.log && !below(8))
			((uint8_t *)log)[8 + below(inflight_bytes(SIZE) - 8)] = junk();
		vring_publish(&ring);
		vring_should_notify(&ring);
		vring_enable_kicks(&ring);
		if (!below(8) && !ring.fault && ring.log) {
			/* A successor takes over. */
			int found;

			vring_init(&ring, &device.memory, SIZE, regions[0], avail, used, 0, base);
			found = vring_recover(&ring, log, heads);
			for (taken = 0; found > 0 && taken < (uint32_t)found; taken++) {
				out[taken] = heads[taken];
				if (heads[taken] >= SIZE)
					die("a recovered head is out of range");
			}
		}
	}
	faults[ring.fault]++;
	free(log);
}

static void some_device(void)
{
	device.capacity = 64;
	device.read_only = !below(8);
	device.discard = below(8);
	device.unsafe = !below(4);
	device.write_through = !below(4);
	device.no_punch_hole = device.no_zero_range = false;
	device.memory_align = below(2) ? 1 : 512;
	device.offset_align = device.memory_align;
	device.files[FILE_IMAGE] = below(10) ? 0 : -1;
	device.written = below(3) ? NULL : calloc(1, sizeof(uint64_t));
}

int main(int argc, char **argv)
{
	uint64_t end = now_ns() + (argc > 1 ? strtoull(argv[1], NULL, 0) : 1) * 1000000000ULL;
	uint32_t i;

	if (argc > 2)
		seed = strtoull(argv[2], NULL, 0) | 1;
	device.events = eventfd(0, EFD_NONBLOCK);
	for (i = 0; i < REGIONS; i++) {
		if (posix_memalign((void **)&regions[i], 4096, sizes[i]))
			die("no memory");
		memset(regions[i], 0, sizes[i]);
		if (!memory_add(&device.memory, gpas[i], sizes[i], regions[i]))
			die("a region cannot be added");
	}
	while (now_ns() < end) {
		some_device();
		one_ring();
		free(device.written);
	}
	printf("pops=%llu chains=%llu requests=%llu steps=%llu ok=%llu ioerr=%llu unsupp=%llu\n",
	       (unsigned long long)pops, (unsigned long long)chains, (unsigned long long)requests,
	       (unsigned long long)steps, (unsigned long long)answers[0],
	       (unsigned long long)answers[1], (unsigned long long)answers[2]);
	for (i = 0; i < RING_FAULTS; i++)
		printf("%s: %llu\n", ring_fault_text[i], (unsigned long long)faults[i]);
	return 0;
}
