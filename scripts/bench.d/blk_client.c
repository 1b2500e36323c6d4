/* SPDX-License-Identifier: MIT */
/*
 * A vhost-user front end that is a block driver: the same client for every
 * backend that scripts/bench compares, and for tests.
 *
 *   blk_client SOCKET read|write SEQUENTIAL BLOCK DEPTH SECONDS BYTES [event]
 *
 * SEQUENTIAL is 0 or 1; BYTES are those of the disk to use. It looks for answers
 * without sleeping, unless told to wait for events. It prints key=value words.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "vhost_user.h"

#define RING 128
#define MAX_DEPTH 32
#define DESC_AT 0
#define AVAIL_AT 0x4000
#define USED_AT 0x8000
#define HEADERS_AT 0x10000
#define DATA_AT 0x100000

#define F_EVENT_IDX (1ULL << 29)
#define F_PROTOCOL (1ULL << 30)
#define F_VERSION_1 (1ULL << 32)
#define PF_REPLY_ACK 8

struct desc { uint64_t address; uint32_t length; uint16_t flags, next; };
struct avail { uint16_t flags, index, ring[RING], used_event; };
struct used { uint16_t flags, index; struct { uint32_t head, length; } ring[RING]; uint16_t avail_event; };
struct header { uint32_t type, reserved; uint64_t sector; };

static uint8_t *memory;
static size_t memory_bytes;

static void tell(uint32_t request, uint64_t number)
{
	struct message message = { .number = number };

	send_message(&message, request, 8, -1);
}

static void tell_state(uint32_t request, uint32_t value)
{
	struct message message = { .state = { 0, value } };

	send_message(&message, request, 8, -1);
}

static void tell_fd(uint32_t request, int fd)
{
	struct message message = { .number = 0 };

	send_message(&message, request, 8, fd);
}

static void connect_to(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };

	strncpy(address.sun_path, path, sizeof(address.sun_path) - 1);
	server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (server < 0 || connect(server, (struct sockaddr *)&address, sizeof(address)))
		fail(path);
}

/* Negotiate, share memory, start queue 0; return what was agreed on. */
static uint64_t set_up(int kick, int call)
{
	int memfd = memfd_create("guest", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	struct message message = { 0 };
	uint64_t features;

	if (memfd < 0 || ftruncate(memfd, memory_bytes) ||
	    fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW))
		fail("memfd");
	memory = mmap(NULL, memory_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, memfd, 0);
	if (memory == MAP_FAILED)
		fail("mmap");
	features = ask(1) & (F_EVENT_IDX | F_PROTOCOL | F_VERSION_1 | 1ULL << 9 | 1ULL << 11);
	ask(15);
	tell(16, 0);
	send_message(&message, 3, 0, -1);
	tell(2, features);
	message.table.count = 1;
	message.table.padding = 0;
	message.table.gpa = message.table.offset = 0;
	message.table.size = memory_bytes;
	message.table.user = (uintptr_t)memory;
	send_message(&message, 5, 8 + 32, memfd);
	tell_state(8, RING);
	tell_state(10, 0);
	memset(&message, 0, sizeof(message));
	message.ring.desc = (uintptr_t)memory + DESC_AT;
	message.ring.avail = (uintptr_t)memory + AVAIL_AT;
	message.ring.used = (uintptr_t)memory + USED_AT;
	send_message(&message, 9, 40, -1);
	tell_fd(13, call);
	tell_fd(12, kick);
	tell_state(18, 1);
	return features;
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

struct job {
	bool write, sequential, wait;
	uint32_t block, depth;
	double seconds;
	uint64_t bytes;
};

struct driver {
	struct desc *desc;
	volatile struct avail *avail;
	volatile struct used *used;
	uint16_t offered, seen;
	uint64_t random, position, kicks, signals;
	bool event_index;
	int kick, call;
};

static void prepare(struct driver *driver, const struct job *job)
{
	uint32_t slot;

	for (slot = 0; slot < job->depth; slot++) {
		struct desc *desc = driver->desc + 3 * slot;
		uint64_t header = HEADERS_AT + 64 * slot;

		desc[0] = (struct desc){ header, 16, 1, 3 * slot + 1 };
		desc[1] = (struct desc){ DATA_AT + (uint64_t)slot * job->block, job->block,
					 job->write ? 1 : 3, 3 * slot + 2 };
		desc[2] = (struct desc){ header + 32, 1, 2, 0 };
		memset(memory + desc[1].address, (int)slot + 1, job->block);
	}
}

static void offer(struct driver *driver, const struct job *job, uint32_t slot)
{
	struct header *header = (struct header *)(memory + HEADERS_AT + 64 * slot);
	uint64_t blocks = job->bytes / job->block, block;

	block = job->sequential ? driver->position++ % blocks : next_random(&driver->random) % blocks;
	header->type = job->write;
	header->sector = block * (job->block / 512);
	memory[HEADERS_AT + 64 * slot + 32] = 0xff;
	driver->avail->ring[driver->offered++ % RING] = 3 * slot;
}

/* Show what was offered, and kick if the device wants it. */
static void show(struct driver *driver, uint16_t before)
{
	uint64_t one = 1;
	bool kick;

	if (driver->offered == before)
		return;
	__atomic_store_n(&driver->avail->index, driver->offered, __ATOMIC_RELEASE);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	kick = driver->event_index ?
		       (uint16_t)(driver->offered - driver->used->avail_event - 1) <
			       (uint16_t)(driver->offered - before) :
		       !(driver->used->flags & 1);
	if (!kick)
		return;
	driver->kicks++;
	if (write(driver->kick, &one, 8) != 8)
		fail("kick");
}

static void wait_for_answer(struct driver *driver)
{
	struct pollfd event = { .fd = driver->call, .events = POLLIN };
	uint64_t count;

	driver->avail->used_event = driver->seen;
	driver->avail->flags = 0;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (driver->used->index != driver->seen)
		return;
	if (poll(&event, 1, 10000) != 1)
		fail("the device does not answer");
	if (read(driver->call, &count, 8) == 8)
		driver->signals++;
}

static uint64_t run(struct driver *driver, const struct job *job)
{
	double end = now() + job->seconds;
	uint64_t done = 0;
	uint32_t slot;

	for (slot = 0; slot < job->depth; slot++)
		offer(driver, job, slot);
	show(driver, 0);
	while (driver->seen != driver->offered) {
		uint16_t index = __atomic_load_n(&driver->used->index, __ATOMIC_ACQUIRE);
		uint16_t before = driver->offered;

		if (index == driver->seen) {
			if (job->wait)
				wait_for_answer(driver);
			else
				__builtin_ia32_pause();
			continue;
		}
		while (driver->seen != index) {
			slot = driver->used->ring[driver->seen++ % RING].head / 3;
			if (slot >= job->depth || memory[HEADERS_AT + 64 * slot + 32])
				fail("a request failed");
			done++;
			if (end)
				offer(driver, job, slot);
		}
		show(driver, before);
		if (!(done & 15) && end && now() > end)
			end = 0;
		else if (end && job->depth < 16 && now() > end)
			end = 0;
	}
	return done;
}

int main(int argc, char **argv)
{
	/* Each run reads other blocks: what the one before it read is in some cache. */
	struct driver driver = { .random = (uint64_t)(now() * 1e9) | 1 };
	struct rusage usage;
	struct job job;
	double began, took;
	uint64_t done;

	if (argc < 8) {
		fprintf(stderr, "usage: blk_client SOCKET read|write SEQUENTIAL BLOCK DEPTH SECONDS BYTES [event]\n");
		return 2;
	}
	job.write = !strcmp(argv[2], "write");
	job.sequential = atoi(argv[3]);
	job.block = atoi(argv[4]);
	job.depth = atoi(argv[5]);
	job.seconds = atof(argv[6]);
	job.bytes = strtoull(argv[7], NULL, 0);
	job.wait = argc > 8;
	if (job.block % 512 || !job.block || !job.depth || job.depth > MAX_DEPTH || job.bytes < job.block)
		return 2;
	memory_bytes = (DATA_AT + (uint64_t)job.block * MAX_DEPTH + 0x1fffff) & ~0x1fffffULL;
	connect_to(argv[1]);
	driver.kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	driver.call = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	driver.event_index = set_up(driver.kick, driver.call) & F_EVENT_IDX;
	driver.desc = (struct desc *)(memory + DESC_AT);
	driver.avail = (struct avail *)(memory + AVAIL_AT);
	driver.used = (struct used *)(memory + USED_AT);
	prepare(&driver, &job);
	driver.avail->flags = !job.wait;
	driver.avail->used_event = job.wait ? 0 : 0x8000;
	began = now();
	done = run(&driver, &job);
	took = now() - began;
	getrusage(RUSAGE_SELF, &usage);
	printf("requests=%llu seconds=%.4f iops=%.0f kicks=%llu signals=%llu client_cpu=%.3f\n",
	       (unsigned long long)done, took, done / took, (unsigned long long)driver.kicks,
	       (unsigned long long)driver.signals,
	       usage.ru_utime.tv_sec + usage.ru_utime.tv_usec / 1e6 + usage.ru_stime.tv_sec +
		       usage.ru_stime.tv_usec / 1e6);
	tell_state(11, 0);
	return 0;
}
