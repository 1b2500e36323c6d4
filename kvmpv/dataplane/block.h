/* SPDX-License-Identifier: MIT */
/*
 * A virtio block device (virtio 1.2, section 5.2): the device, its requests, and
 * how each becomes calls of the kernel. block_loop.h has the thread of a queue.
 *
 * A request is served in steps, each one call of io_uring, mostly one in all:
 * what one call does not finish, or may not do in one go, the next one goes on with.
 */
#ifndef KVMPV_DATAPLANE_BLOCK_H
#define KVMPV_DATAPLANE_BLOCK_H

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <pthread.h>

#include "bucket.h"
#include "ring.h"
#include "uring.h"

#define SECTOR 512
#define BLK_T_IN 0
#define BLK_T_OUT 1
#define BLK_T_FLUSH 4
#define BLK_T_GET_ID 8
#define BLK_T_DISCARD 11
#define BLK_T_WRITE_ZEROES 13
#define BLK_S_OK 0
#define BLK_S_IOERR 1
#define BLK_S_UNSUPP 2
#define BLK_ID_BYTES 20
#define BLK_ZEROES_UNMAP 1
#define BLK_MAX_ZEROES (1 << 21)	/* sectors of one request; config says so */

#define BLOCK_QUEUES 64
#define BLOCK_SLOTS 1024		/* requests of one queue in work at once */
#define BLOCK_FEW_PIECES 4
#define BLOCK_BOUNCE_BYTES (256 << 10)
#define BLOCK_BOUNCES 8			/* of one queue */
#define BLOCK_TRIES 100
#define BLOCK_ZERO_BYTES (256 << 10)

enum { FILE_IMAGE, FILE_OVERLAY, FILES };

struct block_header {
	uint32_t type;
	uint32_t reserved;
	uint64_t sector;
};

struct block_range {
	uint64_t sector;
	uint32_t sectors;
	uint32_t flags;
};

/* What is counted; each thread has its own, and Python adds them up. */
struct block_counters {
	uint64_t reads, writes, flushes, discards, others;
	uint64_t read_bytes, written_bytes;
	uint64_t kicks, calls, syscalls, sleeps, lingers;
	uint64_t errors, bounced, throttled, replayed, resumed;
};

struct block_device {
	struct guest_memory memory;
	int files[FILES];	/* -1: there is none; no image: the null device */
	uint64_t capacity;	/* sectors */
	uint32_t memory_align;	/* of addresses, for O_DIRECT; 1: any will do */
	uint32_t offset_align;	/* of lengths and offsets */
	bool read_only;
	bool block_special;	/* the image is a block device */
	bool unsafe;		/* flushes are for others */
	bool write_through;	/* each write is on the disk before it is done */
	bool discard;
	bool no_zero_range;	/* the file system cannot, as was seen */
	bool no_punch_hole;
	uint8_t id[BLK_ID_BYTES];
	struct limits *limits;
	/* The overlay of a throw-away disk: a bit for each sector that was written. */
	uint64_t *written;
	uint64_t poll_max_ns;
	int events;		/* eventfd: something for Python to look at */
	uint64_t told_errors[4];	/* one bit for each errno */
	int last_error;
	int last_kind;
	uint64_t last_sector;
};

enum request_kind { REQUEST_READ, REQUEST_WRITE, REQUEST_FLUSH, REQUEST_DISCARD, REQUEST_ZERO };

struct block_request {
	struct block_request *next;	/* in a list */
	struct iovec *pieces;		/* of the data, those not done yet */
	struct iovec few[BLOCK_FEW_PIECES];
	struct iovec *many;		/* its own, kept for the next one */
	uint32_t many_room;
	uint32_t count;
	uint8_t *status_at;
	uint8_t *bounce;
	uint64_t begin;			/* bytes from the disk's start */
	uint64_t offset;		/* the same, of what is not done yet */
	uint64_t left;
	uint64_t step;			/* bytes that are under way */
	uint32_t writable;		/* bytes of the chain, the status among them */
	uint16_t head;
	uint8_t kind;
	uint8_t file;
	uint8_t tries;
	bool unmap;
	bool fallback;			/* zeroes are to be written out */
	bool must_bounce;
};

/* ---- telling Python */

static inline void block_tell(struct block_device *device)
{
	uint64_t one = 1;

	if (write(device->events, &one, sizeof(one)) < 0)
		return;	/* it is full: somebody has been told */
}

/* Once for each kind of error: a failing disk fails often. */
static inline void block_tell_error(struct block_device *device, int error, int kind,
				    uint64_t sector)
{
	uint64_t bit = 1ULL << (error & 63);

	if (__atomic_fetch_or(&device->told_errors[error >> 6 & 3], bit, __ATOMIC_RELAXED) & bit)
		return;
	device->last_kind = kind;
	device->last_sector = sector;
	__atomic_store_n(&device->last_error, error, __ATOMIC_RELEASE);
	block_tell(device);
}

/* ---- the overlay of a throw-away disk */

static inline bool overlay_has(const struct block_device *device, uint64_t sector)
{
	return __atomic_load_n(&device->written[sector / 64], __ATOMIC_ACQUIRE) >> sector % 64 & 1;
}

/* Return how many of `sectors` from `sector` on lie in the same file as the first. */
static inline uint64_t overlay_run(const struct block_device *device, uint64_t sector,
				   uint64_t sectors)
{
	bool there = overlay_has(device, sector);
	uint64_t run = 1;

	while (run < sectors && overlay_has(device, sector + run) == there)
		run++;
	return run;
}

static inline void overlay_mark(struct block_device *device, uint64_t sector, uint64_t sectors)
{
	while (sectors) {
		uint64_t bits = 64 - sector % 64 < sectors ? 64 - sector % 64 : sectors;
		uint64_t mask = bits == 64 ? ~0ULL : ((1ULL << bits) - 1) << sector % 64;

		__atomic_fetch_or(&device->written[sector / 64], mask, __ATOMIC_RELEASE);
		sector += bits;
		sectors -= bits;
	}
}

/* ---- from a chain to a request */

/* Take the pieces of a chain from `skip` bytes on, `length` of them. */
static inline bool request_take_pieces(struct block_request *request, const struct iovec *from,
				       uint32_t count, uint64_t skip, uint64_t length)
{
	struct iovec *to = request->few;
	uint32_t i, taken = 0;

	if (count > BLOCK_FEW_PIECES) {
		if (request->many_room < count) {
			struct iovec *more = realloc(request->many, count * sizeof(*more));

			if (!more)
				return false;
			request->many = more;
			request->many_room = count;
		}
		to = request->many;
	}
	for (i = 0; i < count && length; i++) {
		uint64_t here = from[i].iov_len;

		if (skip >= here) {
			skip -= here;
			continue;
		}
		here -= skip;
		if (here > length)
			here = length;
		to[taken].iov_base = (uint8_t *)from[i].iov_base + skip;
		to[taken++].iov_len = here;
		length -= here;
		skip = 0;
	}
	request->pieces = to;
	request->count = taken;
	return true;
}

static inline bool request_in_range(const struct block_device *device, uint64_t sector,
				    uint64_t bytes)
{
	uint64_t capacity = __atomic_load_n(&device->capacity, __ATOMIC_RELAXED);

	return bytes % SECTOR == 0 && sector <= capacity && bytes / SECTOR <= capacity - sector;
}

/* What parsing came to: a status to answer at once, or one of these. */
enum { REQUEST_GOES = -1, REQUEST_BROKEN = -2 };

static inline int request_data(const struct block_device *device, struct block_request *request,
			       const struct ring_chain *chain, uint64_t sector, bool write)
{
	const struct iovec *pieces = chain->pieces + (write ? 0 : chain->out_count);
	uint32_t count = write ? chain->out_count : chain->in_count;
	uint64_t skip = write ? sizeof(struct block_header) : 0;
	uint64_t bytes = write ? chain->out_bytes - skip : chain->in_bytes - 1;

	if (write && device->read_only)
		return BLK_S_IOERR;
	if (!request_in_range(device, sector, bytes))
		return BLK_S_IOERR;
	if (!bytes)
		return BLK_S_OK;
	if (!request_take_pieces(request, pieces, count, skip, bytes))
		return BLK_S_IOERR;
	request->kind = write ? REQUEST_WRITE : REQUEST_READ;
	request->begin = request->offset = sector * SECTOR;
	request->left = bytes;
	return REQUEST_GOES;
}

/* DISCARD and WRITE_ZEROES: one range, as config says. */
static inline int request_range(const struct block_device *device, struct block_request *request,
				const struct ring_chain *chain, bool zero)
{
	struct block_range range;

	if (!device->discard)
		return BLK_S_UNSUPP;
	if (device->read_only || chain->out_bytes != sizeof(struct block_header) + sizeof(range))
		return BLK_S_IOERR;
	load_bytes(chain->pieces, chain->out_count, sizeof(struct block_header), &range,
		   sizeof(range));
	if (range.flags & ~(zero ? BLK_ZEROES_UNMAP : 0U))
		return BLK_S_UNSUPP;
	if (range.sectors > BLK_MAX_ZEROES ||
	    !request_in_range(device, range.sector, (uint64_t)range.sectors * SECTOR))
		return BLK_S_IOERR;
	if (!range.sectors)
		return BLK_S_OK;
	request->kind = zero ? REQUEST_ZERO : REQUEST_DISCARD;
	request->unmap = range.flags & BLK_ZEROES_UNMAP;
	request->begin = request->offset = range.sector * SECTOR;
	request->left = (uint64_t)range.sectors * SECTOR;
	return REQUEST_GOES;
}

static inline int request_id(const struct block_device *device, const struct ring_chain *chain)
{
	if (chain->in_bytes != BLK_ID_BYTES + 1)
		return BLK_S_IOERR;
	store_bytes(&device->memory, chain->pieces + chain->out_count, chain->in_count, 0,
		    device->id, BLK_ID_BYTES);
	return BLK_S_OK;
}

/* Make a request of a chain: a status, REQUEST_GOES, or REQUEST_BROKEN: the chain is no request. */
static inline int request_parse(const struct block_device *device, struct block_request *request,
				const struct ring_chain *chain)
{
	const struct iovec *last = &chain->pieces[chain->out_count + chain->in_count - 1];
	struct block_header header;

	if (!chain->in_count || load_bytes(chain->pieces, chain->out_count, 0, &header,
					   sizeof(header)) < sizeof(header))
		return REQUEST_BROKEN;
	request->head = chain->head;
	request->writable = chain->in_bytes;
	request->status_at = (uint8_t *)last->iov_base + last->iov_len - 1;
	request->pieces = NULL;
	request->count = 0;
	request->bounce = NULL;
	request->tries = 0;
	request->unmap = request->fallback = request->must_bounce = false;
	switch (header.type) {
	case BLK_T_IN:
		return request_data(device, request, chain, header.sector, false);
	case BLK_T_OUT:
		return request_data(device, request, chain, header.sector, true);
	case BLK_T_FLUSH:
		request->kind = REQUEST_FLUSH;
		request->offset = request->left = 0;
		return REQUEST_GOES;
	case BLK_T_GET_ID:
		return request_id(device, chain);
	case BLK_T_DISCARD:
		return request_range(device, request, chain, false);
	case BLK_T_WRITE_ZEROES:
		return request_range(device, request, chain, true);
	default:
		return BLK_S_UNSUPP;
	}
}

/* Say whether a request needs no call at all. */
static inline bool request_is_free(const struct block_device *device,
				   const struct block_request *request)
{
	if (device->files[FILE_IMAGE] < 0)
		return true;
	if (request->kind == REQUEST_FLUSH)
		return device->unsafe || device->read_only || device->written;
	/* Nobody may rely on what a discarded sector holds: the overlay keeps it. */
	return request->kind == REQUEST_DISCARD && (device->written || device->no_punch_hole);
}

/* ---- steps */

static inline bool request_is_aligned(const struct block_device *device,
				      const struct block_request *request)
{
	uint32_t i;

	for (i = 0; i < request->count; i++)
		if (((uintptr_t)request->pieces[i].iov_base & (device->memory_align - 1)) |
		    (request->pieces[i].iov_len & (device->offset_align - 1)))
			return false;
	return true;
}

/* Say whether the next step needs a bounce buffer that the request does not have. */
static inline bool request_wants_bounce(const struct block_device *device,
					const struct block_request *request)
{
	if (request->kind > REQUEST_WRITE || request->bounce)
		return false;
	return request->must_bounce ||
	       (device->memory_align > 1 && !request_is_aligned(device, request));
}

/* Say that `bytes` of the data are done. */
static inline void request_advance(struct block_request *request, uint64_t bytes)
{
	request->offset += bytes;
	request->left -= bytes;
	while (request->count && bytes) {
		struct iovec *first = request->pieces;

		if (first->iov_len > bytes) {
			first->iov_base = (uint8_t *)first->iov_base + bytes;
			first->iov_len -= bytes;
			return;
		}
		bytes -= first->iov_len;
		request->pieces++;
		request->count--;
	}
}

/* Fill an entry with reading or writing `step` bytes. */
static inline void step_transfer(const struct block_device *device, struct block_request *request,
				 struct io_uring_sqe *sqe)
{
	bool write = request->kind == REQUEST_WRITE;

	sqe->off = request->offset;
	if (write && device->write_through && !device->written)
		sqe->rw_flags = RWF_DSYNC;
	if (request->bounce) {
		if (write)
			load_bytes(request->pieces, request->count, 0, request->bounce,
				   request->step);
		sqe->addr = (uintptr_t)request->bounce;
		sqe->len = request->step;
	} else if (request->count > 1 && request->step == request->left) {
		sqe->opcode = write ? IORING_OP_WRITEV : IORING_OP_READV;
		sqe->addr = (uintptr_t)request->pieces;
		sqe->len = request->count;
		return;
	} else {
		if (request->step > request->pieces->iov_len)
			request->step = request->pieces->iov_len;
		sqe->addr = (uintptr_t)request->pieces->iov_base;
		sqe->len = request->step;
	}
	sqe->opcode = write ? IORING_OP_WRITE : IORING_OP_READ;
}

static inline void step_fallocate(struct io_uring_sqe *sqe, const struct block_request *request,
				  int mode)
{
	sqe->opcode = IORING_OP_FALLOCATE;
	sqe->off = request->offset;
	sqe->addr = request->step;	/* the length, for this operation */
	sqe->len = FALLOC_FL_KEEP_SIZE | mode;
}

static inline void step_zero(struct block_device *device, struct block_request *request,
			     struct io_uring_sqe *sqe, const uint8_t *zeroes)
{
	bool punch = request->kind == REQUEST_DISCARD || request->unmap;

	if (device->written || request->fallback) {
		if (request->step > BLOCK_ZERO_BYTES)
			request->step = BLOCK_ZERO_BYTES;
		sqe->opcode = IORING_OP_WRITE;
		sqe->off = request->offset;
		sqe->addr = (uintptr_t)zeroes;
		sqe->len = request->step;
		if (device->write_through && !device->written)
			sqe->rw_flags = RWF_DSYNC;
	} else {
		step_fallocate(sqe, request,
			       punch && !device->no_punch_hole ? FALLOC_FL_PUNCH_HOLE :
								 FALLOC_FL_ZERO_RANGE);
	}
}

/* Fill an entry with the request's next step. */
static inline void request_step(struct block_device *device, struct block_request *request,
				struct io_uring_sqe *sqe, const uint8_t *zeroes)
{
	request->step = request->left;
	request->file = FILE_IMAGE;
	if (device->written && request->kind != REQUEST_FLUSH) {
		uint64_t sector = request->offset / SECTOR;

		request->file = FILE_OVERLAY;
		if (request->kind == REQUEST_READ) {
			/* The last step may have ended within a sector, where a piece did. */
			uint64_t into = request->offset % SECTOR;
			uint64_t sectors = (into + request->left) / SECTOR;

			request->step = SECTOR * overlay_run(device, sector, sectors) - into;
			if (!overlay_has(device, sector))
				request->file = FILE_IMAGE;
		}
	}
	if (request->bounce && request->step > BLOCK_BOUNCE_BYTES)
		request->step = BLOCK_BOUNCE_BYTES;
	/* What one call may move, cut so that O_DIRECT can go on behind it. */
	if (request->kind <= REQUEST_WRITE && request->step > 1 << 30)
		request->step = 1 << 30;
	switch (request->kind) {
	case REQUEST_FLUSH:
		sqe->opcode = IORING_OP_FSYNC;
		sqe->fsync_flags = IORING_FSYNC_DATASYNC;
		break;
	case REQUEST_DISCARD:
	case REQUEST_ZERO:
		step_zero(device, request, sqe, zeroes);
		break;
	default:
		step_transfer(device, request, sqe);
	}
	sqe->fd = request->file;
	sqe->flags = IOSQE_FIXED_FILE;
	sqe->user_data = (uintptr_t)request;
}

/* Try a step that the kernel cannot do in that way in another; false when there is none. */
static inline bool request_other_way(struct block_device *device, struct block_request *request,
				     int error)
{
	if (error == EAGAIN || error == EINTR)
		return request->tries++ < BLOCK_TRIES;
	if (request->kind <= REQUEST_WRITE) {
		/* O_DIRECT on a file system that does not say what it wants. */
		if (error != EINVAL || device->memory_align <= 1 || request->bounce)
			return false;
		return request->must_bounce = true;
	}
	if ((error != EOPNOTSUPP && error != EINVAL && error != ENOSYS) || request->fallback)
		return false;
	if ((request->kind == REQUEST_DISCARD || request->unmap) && !device->no_punch_hole) {
		device->no_punch_hole = true;
		return request->kind == REQUEST_ZERO;
	}
	if (request->kind == REQUEST_ZERO)
		return request->fallback = true;
	return false;
}

/*
 * Take what came of a step: REQUEST_GOES when there is more to do, else the status.
 */
static inline int request_stepped(struct block_device *device, struct block_request *request,
				  int32_t result)
{
	if (result < 0) {
		if (request_other_way(device, request, -result))
			return REQUEST_GOES;
		if (request->kind == REQUEST_READ && !request->bounce)
			store_done_by_kernel(&device->memory, request->pieces, request->count,
					     request->step);
		/* A discard is a hint. */
		if (request->kind == REQUEST_DISCARD && result == -EOPNOTSUPP)
			return BLK_S_OK;
		block_tell_error(device, -result, request->kind, request->offset / SECTOR);
		return BLK_S_IOERR;
	}
	if (request->kind == REQUEST_FLUSH)
		return BLK_S_OK;
	if (request->kind <= REQUEST_WRITE || device->written || request->fallback) {
		if ((uint32_t)result < request->step)
			request->step = result - result % SECTOR;
		if (!request->step) {
			/* The image ends before the disk does, or the file system in a sector. */
			block_tell_error(device, request->kind == REQUEST_READ ? ENODATA : ENOSPC,
					 request->kind, request->offset / SECTOR);
			return BLK_S_IOERR;
		}
	}
	if (request->kind == REQUEST_READ) {
		if (request->bounce)
			store_bytes(&device->memory, request->pieces, request->count, 0,
				    request->bounce, request->step);
		else
			store_done_by_kernel(&device->memory, request->pieces, request->count,
					     request->step);
	}
	request_advance(request, request->step);
	if (device->written && request->kind != REQUEST_READ && !request->left)
		overlay_mark(device, request->begin / SECTOR,
			     (request->offset - request->begin) / SECTOR);
	if (request->kind == REQUEST_ZERO && !request->left && device->write_through &&
	    !device->written && !request->fallback) {
		request->kind = REQUEST_FLUSH;
		return REQUEST_GOES;
	}
	return request->left ? REQUEST_GOES : BLK_S_OK;
}

#endif
