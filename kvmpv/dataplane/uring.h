/* SPDX-License-Identifier: MIT */
/*
 * io_uring by its system calls alone: one ring, used by the one thread that made
 * it. Nothing of guest memory is ever registered: that would pin it whole.
 */
#ifndef KVMPV_DATAPLANE_URING_H
#define KVMPV_DATAPLANE_URING_H

#include <errno.h>
#include <linux/io_uring.h>
#include <linux/time_types.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

struct uring {
	int fd;
	int enter_fd;		/* the same, or its registered number */
	unsigned enter_flags;
	bool deferred;		/* completions come only while we are in the kernel */
	uint32_t entries;
	uint32_t sq_mask, cq_mask;
	uint32_t sq_tail;	/* ours; the kernel sees it when we submit */
	uint32_t pending;	/* filled, and not submitted */
	uint32_t *k_sq_tail, *k_sq_flags, *k_cq_head, *k_cq_tail;
	struct io_uring_sqe *sqes;
	struct io_uring_cqe *cqes;
	void *map, *sqe_map;
	size_t map_bytes, sqe_bytes;
	uint64_t syscalls;
};

static inline void uring_close(struct uring *uring)
{
	if (uring->sqe_map)
		munmap(uring->sqe_map, uring->sqe_bytes);
	if (uring->map)
		munmap(uring->map, uring->map_bytes);
	if (uring->fd >= 0)
		close(uring->fd);
	memset(uring, 0, sizeof(*uring));
	uring->fd = -1;
}

/* Try what this kernel may have, best first. */
static inline int uring_setup(uint32_t entries, uint32_t completions, struct io_uring_params *params)
{
	static const uint32_t wishes[] = {
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
		IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
		0,
	};
	unsigned i;
	int fd = -1;

	for (i = 0; i < sizeof(wishes) / sizeof(wishes[0]); i++) {
		memset(params, 0, sizeof(*params));
		params->flags = wishes[i] | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP;
		params->cq_entries = completions;
		fd = (int)syscall(SYS_io_uring_setup, entries, params);
		if (fd >= 0 || errno != EINVAL)
			break;
	}
	return fd < 0 ? -errno : fd;
}

static inline int uring_map(struct uring *uring, const struct io_uring_params *params)
{
	size_t sq = params->sq_off.array + params->sq_entries * sizeof(uint32_t);
	size_t cq = params->cq_off.cqes + params->cq_entries * sizeof(struct io_uring_cqe);
	uint8_t *map;
	uint32_t *array, i;

	uring->map_bytes = sq > cq ? sq : cq;
	map = mmap(NULL, uring->map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
		   uring->fd, IORING_OFF_SQ_RING);
	if (map == MAP_FAILED)
		return -errno;
	uring->map = map;
	uring->sqe_bytes = params->sq_entries * sizeof(struct io_uring_sqe);
	uring->sqe_map = mmap(NULL, uring->sqe_bytes, PROT_READ | PROT_WRITE,
			      MAP_SHARED | MAP_POPULATE, uring->fd, IORING_OFF_SQES);
	if (uring->sqe_map == MAP_FAILED) {
		uring->sqe_map = NULL;
		return -errno;
	}
	uring->sqes = uring->sqe_map;
	uring->cqes = (struct io_uring_cqe *)(map + params->cq_off.cqes);
	uring->k_sq_tail = (uint32_t *)(map + params->sq_off.tail);
	uring->k_sq_flags = (uint32_t *)(map + params->sq_off.flags);
	uring->k_cq_head = (uint32_t *)(map + params->cq_off.head);
	uring->k_cq_tail = (uint32_t *)(map + params->cq_off.tail);
	uring->sq_mask = params->sq_entries - 1;
	uring->cq_mask = params->cq_entries - 1;
	uring->entries = params->sq_entries;
	array = (uint32_t *)(map + params->sq_off.array);
	for (i = 0; i < params->sq_entries; i++)
		array[i] = i;
	return 0;
}

/* Make a ring, its `files` registered; 0 or -errno. To be called by the thread that uses it. */
static inline int uring_open(struct uring *uring, uint32_t entries, uint32_t completions,
			     const int *files, unsigned count)
{
	struct io_uring_rsrc_update self = { .offset = UINT32_MAX };
	struct io_uring_params params;
	int error;

	memset(uring, 0, sizeof(*uring));
	uring->fd = uring_setup(entries, completions, &params);
	if (uring->fd < 0) {
		error = uring->fd;
		uring->fd = -1;
		return error;
	}
	error = uring_map(uring, &params);
	if (!error && !(params.features & IORING_FEAT_SINGLE_MMAP))
		error = -ENOSYS;	/* before Linux 5.4; EXT_ARG below came with 5.11 */
	if (!error && !(params.features & IORING_FEAT_EXT_ARG))
		error = -ENOSYS;
	if (!error && count &&
	    syscall(SYS_io_uring_register, uring->fd, IORING_REGISTER_FILES, files, count) < 0)
		error = -errno;
	if (error) {
		uring_close(uring);
		return error;
	}
	uring->deferred = params.flags & (IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_COOP_TASKRUN);
	uring->enter_fd = uring->fd;
	self.data = uring->fd;
	if (syscall(SYS_io_uring_register, uring->fd, IORING_REGISTER_RING_FDS, &self, 1) == 1) {
		uring->enter_fd = self.offset;
		uring->enter_flags = IORING_ENTER_REGISTERED_RING;
	}
	return 0;
}

/*
 * Submit what is pending, and wait for `wanted` completions, `wait_ns` at most (negative: for
 * ever). 0 or -errno; -ETIME and -EINTR are of no importance.
 */
static inline int uring_enter(struct uring *uring, unsigned wanted, int64_t wait_ns)
{
	struct __kernel_timespec time = { wait_ns / 1000000000, wait_ns % 1000000000 };
	struct io_uring_getevents_arg argument = { .sigmask_sz = 8, .ts = (uintptr_t)&time };
	unsigned flags = uring->enter_flags | IORING_ENTER_GETEVENTS;
	bool timed = wanted && wait_ns >= 0;
	long done;

	__atomic_store_n(uring->k_sq_tail, uring->sq_tail, __ATOMIC_RELEASE);
	if (timed)
		flags |= IORING_ENTER_EXT_ARG;
	uring->syscalls++;
	done = syscall(SYS_io_uring_enter, uring->enter_fd, uring->pending, wanted, flags,
		       timed ? &argument : NULL, timed ? sizeof(argument) : 0);
	if (done < 0) {
		/* Nothing was submitted: a wait that fails after that tells what was. */
		return -errno;
	}
	uring->pending -= (uint32_t)done < uring->pending ? (uint32_t)done : uring->pending;
	return 0;
}

/* Return an entry to fill, zeroed; submits by itself when there is none. NULL: the kernel is busy. */
static inline struct io_uring_sqe *uring_next(struct uring *uring)
{
	struct io_uring_sqe *sqe;

	if (uring->pending == uring->entries) {
		uring_enter(uring, 0, -1);
		if (uring->pending == uring->entries)
			return NULL;
	}
	sqe = &uring->sqes[uring->sq_tail++ & uring->sq_mask];
	uring->pending++;
	memset(sqe, 0, sizeof(*sqe));
	return sqe;
}

/* Say whether a completion is there; costs no system call. */
static inline bool uring_has_completion(const struct uring *uring)
{
	return __atomic_load_n(uring->k_cq_tail, __ATOMIC_ACQUIRE) != *uring->k_cq_head;
}

/* Say whether the kernel has completions that it only hands over when it is entered. */
static inline bool uring_has_work(const struct uring *uring)
{
	return __atomic_load_n(uring->k_sq_flags, __ATOMIC_RELAXED) &
	       (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW);
}

/* Take a completion: false when there is none. */
static inline bool uring_completion(struct uring *uring, struct io_uring_cqe *into)
{
	uint32_t head = *uring->k_cq_head;

	if (__atomic_load_n(uring->k_cq_tail, __ATOMIC_ACQUIRE) == head)
		return false;
	*into = uring->cqes[head & uring->cq_mask];
	__atomic_store_n(uring->k_cq_head, head + 1, __ATOMIC_RELEASE);
	return true;
}

/* Ask to be told, with `tag`, of each change of a descriptor that makes it readable. */
static inline bool uring_watch(struct uring *uring, int fd, uint64_t tag)
{
	struct io_uring_sqe *sqe = uring_next(uring);

	if (!sqe)
		return false;
	sqe->opcode = IORING_OP_POLL_ADD;
	sqe->fd = fd;
	sqe->len = IORING_POLL_ADD_MULTI;
	sqe->poll32_events = 1;	/* POLLIN */
	sqe->user_data = tag;
	return true;
}

static inline bool uring_unwatch(struct uring *uring, uint64_t tag, uint64_t own_tag)
{
	struct io_uring_sqe *sqe = uring_next(uring);

	if (!sqe)
		return false;
	sqe->opcode = IORING_OP_POLL_REMOVE;
	sqe->fd = -1;
	sqe->addr = tag;
	sqe->user_data = own_tag;
	return true;
}

#endif
