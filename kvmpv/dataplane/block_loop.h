/* SPDX-License-Identifier: MIT */
/*
 * The thread of one block queue. It knows nothing of Python: it is told what to
 * do by a word in memory and an eventfd, and sleeps in one call that waits for the
 * driver's kick, for that eventfd, for the disk, and for the time that a limit ends.
 */
#ifndef KVMPV_DATAPLANE_BLOCK_LOOP_H
#define KVMPV_DATAPLANE_BLOCK_LOOP_H

#include <signal.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>

#include "block.h"
#include "linger.h"

#define LOOP_STACK (128 << 10)
#define LOOP_ENTRIES 64		/* that can wait to be submitted */
/*
 * Chains taken before they are submitted, and completions looked at. Few, so that disk
 * and driver are at work while the next ones are taken: what is submitted at once comes
 * back at once, and then everybody waits for everybody else's wake-up.
 */
#define LOOP_TURN 4
#define LOOP_POLL_FIRST_NS 4000
#define LOOP_POLL_MISSES 4
#define LOOP_POLL_REST 256	/* sleeps */
#define LOOP_NO_KICK_NS 1000000	/* how often a queue without a kick is looked at, when idle */

enum { TAG_KICK = 1, TAG_WAKE, TAG_CANCEL, TAG_LAST };
enum { LOOP_STARTING, LOOP_RUNS, LOOP_FAILED };

struct block_queue {
	struct block_device *device;
	struct vring ring;
	struct uring uring;
	struct block_counters counters;

	/* What Python says; read by the thread when its wake eventfd is written. */
	bool stop, enabled, paused;
	int kick, call, err, wake;

	/* What the thread says, under the lock. */
	pthread_mutex_t lock;
	pthread_cond_t changed;
	int state;
	int error;
	bool quiet;
	pthread_t thread;

	struct block_request *slots;
	struct block_request *free;	/* the one that was used last comes first */
	uint32_t fresh;			/* slots that were never used: their memory is untouched */
	struct block_request *waiting, **waiting_end;	/* for a bounce buffer or an entry */
	struct block_request *delayed;	/* by a limit */
	uint64_t delayed_until;
	uint32_t slot_count;
	uint32_t busy;			/* requests taken and not answered */
	uint32_t under_way;		/* of those, in the kernel */

	uint16_t *replay;		/* heads that a predecessor left in flight */
	uint32_t replay_at, replay_count;

	uint8_t *bounces;		/* mapped when the first is needed */
	uint8_t *bounce_free[BLOCK_BOUNCES];
	uint32_t bounce_count;
	uint8_t *zeroes;

	uint64_t poll_ns;
	uint32_t poll_misses;		/* since polling last found something */
	uint32_t poll_rest;		/* sleeps before it is tried again */
	struct linger linger;
	bool fault_told;
	struct iovec pieces[RING_MAX_PIECES];
};

/* ---- answers */

static inline void loop_answer(struct block_queue *queue, struct block_request *request,
			       uint8_t status)
{
	const struct block_device *device = queue->device;
	uint32_t written = 1;

	/* The length counts from the first writable byte: data that is not all there counts not. */
	if (request->writable > 1)
		written = status == BLK_S_OK ? request->writable : 0;
	store8(&device->memory, request->status_at, status);
	vring_push(&queue->ring, request->head, written);
	queue->counters.errors += status != BLK_S_OK;
	if (request->bounce)
		queue->bounce_free[queue->bounce_count++] = request->bounce;
	request->bounce = NULL;
	request->next = queue->free;
	queue->free = request;
	queue->busy--;
	linger_note_answer(&queue->linger, queue->busy);
}

static inline void loop_call(struct block_queue *queue)
{
	uint64_t one = 1;

	queue->counters.calls++;
	queue->counters.syscalls++;
	if (write(queue->call, &one, sizeof(one)) < 0)
		return;	/* it is full: the driver has a signal that it did not look at */
}

/* Signal the driver if it waits for what was published. */
static inline void loop_signal(struct block_queue *queue)
{
	if (vring_should_notify(&queue->ring))
		loop_call(queue);
}

/* ---- calls of the kernel */

static inline bool loop_map_bounces(struct block_queue *queue)
{
	uint32_t i;

	if (queue->bounces)
		return true;
	queue->bounces = mmap(NULL, BLOCK_BOUNCES * BLOCK_BOUNCE_BYTES, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (queue->bounces == MAP_FAILED) {
		queue->bounces = NULL;
		return false;
	}
	for (i = 0; i < BLOCK_BOUNCES; i++)
		queue->bounce_free[i] = queue->bounces + i * BLOCK_BOUNCE_BYTES;
	queue->bounce_count = BLOCK_BOUNCES;
	return true;
}

static inline const uint8_t *loop_zeroes(struct block_queue *queue)
{
	if (!queue->zeroes) {
		/* Never written: all of it is the kernel's one page of zeroes. */
		queue->zeroes = mmap(NULL, BLOCK_ZERO_BYTES, PROT_READ,
				     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (queue->zeroes == MAP_FAILED)
			queue->zeroes = NULL;
	}
	return queue->zeroes;
}

/* Start a request's next step; false when something it needs is not to be had now. */
static inline bool loop_start_step(struct block_queue *queue, struct block_request *request)
{
	struct io_uring_sqe *sqe;
	const uint8_t *zeroes = NULL;

	if (seldom(request_wants_bounce(queue->device, request))) {
		if (!loop_map_bounces(queue) || !queue->bounce_count)
			return false;
		request->bounce = queue->bounce_free[--queue->bounce_count];
		queue->counters.bounced++;
	}
	if (seldom(request->kind == REQUEST_ZERO)) {
		zeroes = loop_zeroes(queue);
		if (!zeroes)
			return false;
	}
	sqe = uring_next(&queue->uring);
	if (!sqe)
		return false;
	request_step(queue->device, request, sqe, zeroes);
	queue->under_way++;
	return true;
}

static inline void loop_start(struct block_queue *queue, struct block_request *request)
{
	if (usually(!queue->waiting && loop_start_step(queue, request)))
		return;
	if (seldom(!queue->under_way)) {
		/* Nothing will come back that it could wait for: there is no memory. */
		block_tell_error(queue->device, ENOMEM, request->kind, request->offset / SECTOR);
		loop_answer(queue, request, BLK_S_IOERR);
		return;
	}
	request->next = NULL;
	*queue->waiting_end = request;
	queue->waiting_end = &request->next;
}

static inline void loop_start_waiting(struct block_queue *queue)
{
	while (queue->waiting && loop_start_step(queue, queue->waiting)) {
		queue->waiting = queue->waiting->next;
		if (!queue->waiting)
			queue->waiting_end = &queue->waiting;
	}
}

static inline void loop_stepped(struct block_queue *queue, struct block_request *request,
				int32_t result)
{
	int status;

	queue->under_way--;
	status = request_stepped(queue->device, request, result);
	if (usually(status >= 0)) {
		loop_answer(queue, request, status);
		return;
	}
	queue->counters.resumed++;
	loop_start(queue, request);
}

/* Take what the kernel has finished; say whether there was anything. */
static inline bool loop_reap(struct block_queue *queue)
{
	struct io_uring_cqe cqe;
	bool any = false;

	while (uring_completion(&queue->uring, &cqe)) {
		any = true;
		if (usually(cqe.user_data >= TAG_LAST)) {
			loop_stepped(queue, (struct block_request *)(uintptr_t)cqe.user_data,
				     cqe.res);
			continue;
		}
		if (cqe.user_data == TAG_CANCEL)
			continue;
		queue->counters.kicks += cqe.user_data == TAG_KICK;
		/* The kernel gives a watch up when its completions overflow. */
		if (!(cqe.flags & IORING_CQE_F_MORE) && !queue->ring.fault)
			uring_watch(&queue->uring,
				    cqe.user_data == TAG_KICK ? queue->kick : queue->wake,
				    cqe.user_data);
	}
	if (seldom(queue->waiting != NULL))
		loop_start_waiting(queue);
	return any;
}

/* ---- what was said to us */

static inline bool loop_flag(const bool *flag)
{
	return __atomic_load_n(flag, __ATOMIC_ACQUIRE);
}

/* Say whether all that was taken is to be finished, limits or not. */
static inline bool loop_is_to_drain(const struct block_queue *queue)
{
	return loop_flag(&queue->stop) || loop_flag(&queue->paused);
}

/* Say whether new chains may be taken. */
static inline bool loop_may_take(const struct block_queue *queue)
{
	return loop_flag(&queue->enabled) && !loop_is_to_drain(queue) && !queue->ring.fault;
}

/* Say whether there is a predecessor's chain to take: a queue that is to stop finishes those. */
static inline bool loop_may_replay(const struct block_queue *queue)
{
	return queue->replay_at < queue->replay_count && !queue->ring.fault &&
	       (loop_may_take(queue) || loop_flag(&queue->stop));
}

/* ---- taking requests */

/* Ask the limits; a request that has to wait holds up the queue. */
static inline bool loop_may_go(struct block_queue *queue, struct block_request *request)
{
	struct limits *limits = queue->device->limits;
	uint64_t now, wait;

	if (usually(!limits_any(limits)) || request->kind == REQUEST_FLUSH || loop_is_to_drain(queue))
		return true;
	now = now_ns();
	wait = limits_take(limits, now, request->kind <= REQUEST_WRITE ? request->left : 0);
	if (!wait)
		return true;
	if (!queue->delayed)
		queue->counters.throttled++;
	queue->delayed = request;
	queue->delayed_until = now + wait;
	return false;
}

static inline void loop_go(struct block_queue *queue, struct block_request *request)
{
	if (seldom(request_is_free(queue->device, request)))
		loop_answer(queue, request, BLK_S_OK);
	else
		loop_start(queue, request);
}

static inline void loop_count(struct block_counters *counters, const struct block_request *request)
{
	switch (request->kind) {
	case REQUEST_READ:
		counters->reads++;
		counters->read_bytes += request->left;
		break;
	case REQUEST_WRITE:
		counters->writes++;
		counters->written_bytes += request->left;
		break;
	case REQUEST_FLUSH:
		counters->flushes++;
		break;
	default:
		counters->discards++;
	}
}

/* Take the next chain: those that a predecessor left come first. */
static inline int loop_next_chain(struct block_queue *queue, struct ring_chain *chain)
{
	if (usually(queue->replay_at == queue->replay_count))
		return loop_may_take(queue) ? vring_pop(&queue->ring, chain) : 0;
	if (!loop_may_replay(queue))
		return 0;
	queue->counters.replayed++;
	return vring_walk(&queue->ring, queue->replay[queue->replay_at++], chain) ? -1 : 1;
}

/* Have a slot in the list of free ones, if there is any. */
static inline struct block_request *loop_slot(struct block_queue *queue)
{
	if (seldom(!queue->free && queue->fresh < queue->slot_count))
		queue->free = &queue->slots[queue->fresh++];
	return queue->free;
}

/* Take one request; false when there is none, or none may be taken now. */
static inline bool loop_take_one(struct block_queue *queue)
{
	struct ring_chain chain = { .pieces = queue->pieces };
	struct block_request *request = loop_slot(queue);
	int status;

	if (!request || loop_next_chain(queue, &chain) <= 0)
		return false;
	status = request_parse(queue->device, request, &chain);
	if (seldom(status == REQUEST_BROKEN)) {
		ring_break(&queue->ring, RING_REQUEST);
		return false;
	}
	queue->free = request->next;
	queue->busy++;
	queue->linger.taken++;
	if (status != REQUEST_GOES) {
		queue->counters.others++;
		loop_answer(queue, request, status);
		return true;
	}
	loop_count(&queue->counters, request);
	if (!loop_may_go(queue, request))
		return false;
	loop_go(queue, request);
	return true;
}

/* Say whether a chain could be taken now. */
static inline bool loop_has_chain(struct block_queue *queue)
{
	if (queue->delayed || !loop_slot(queue))
		return false;
	if (seldom(queue->replay_at < queue->replay_count))
		return loop_may_replay(queue);
	return loop_may_take(queue) && (vring_look(&queue->ring) || queue->ring.fault);
}

static inline bool loop_take(struct block_queue *queue)
{
	struct block_request *delayed = queue->delayed;
	int turn = 0;

	if (seldom(delayed != NULL)) {
		if (!loop_is_to_drain(queue) && now_ns() < queue->delayed_until)
			return false;
		if (!loop_may_go(queue, delayed))
			return false;
		queue->delayed = NULL;
		loop_go(queue, delayed);
		turn = 1;
	}
	while (turn < LOOP_TURN && loop_take_one(queue))
		turn++;
	return turn;
}

/* ---- waiting */

static inline bool loop_is_unsignalled(const struct block_queue *queue)
{
	return queue->ring.published != queue->ring.signalled;
}

/* Let requests gather for a moment where that is better; false: wait for the next one. */
static inline bool loop_linger(struct block_queue *queue, uint64_t now)
{
	struct linger *linger = &queue->linger;
	struct timespec step = { 0 };

	step.tv_nsec = linger_step(linger, now, queue->under_way);
	if (usually(!step.tv_nsec) || queue->delayed || queue->ring.fault || loop_is_to_drain(queue)) {
		linger->taken = linger->given = 0;
		return false;
	}
	if (linger_is_to_signal(linger, loop_is_unsignalled(queue)))
		loop_signal(queue);
	linger->taken = linger->given = 0;
	if (queue->uring.pending)
		uring_enter(&queue->uring, 0, -1);
	queue->counters.lingers++;
	queue->counters.syscalls++;
	/* Not in io_uring: there each completion would wake us. */
	nanosleep(&step, NULL);
	uring_enter(&queue->uring, 0, -1);
	return true;
}

/* Look for work without a system call, for as long as that paid last time. */
static inline bool loop_poll(struct block_queue *queue, uint64_t began)
{
	int i;

	do {
		for (i = 0; i < 32; i++) {
			if (uring_has_completion(&queue->uring) || loop_has_chain(queue) ||
			    loop_is_to_drain(queue) || (queue->ring.fault && !queue->fault_told))
				return true;
			if (uring_has_work(&queue->uring)) {
				uring_enter(&queue->uring, 0, -1);
				return true;
			}
			__builtin_ia32_pause();
		}
	} while (now_ns() - began < queue->poll_ns);
	return false;
}

/*
 * Poll longer next time when that would have saved this sleep, and not at all when
 * it would not. Where polling keeps missing, for the driver has no processor to run
 * on meanwhile, leave it for a while.
 */
static inline void loop_adapt(struct block_queue *queue, uint64_t idle_ns, bool polled)
{
	uint64_t most = queue->device->poll_max_ns;

	if (queue->poll_rest) {
		queue->poll_rest--;
		return;
	}
	if (polled && ++queue->poll_misses == LOOP_POLL_MISSES) {
		queue->poll_misses = 0;
		queue->poll_rest = LOOP_POLL_REST;
		queue->poll_ns = 0;
		return;
	}
	if (idle_ns > most)
		queue->poll_ns = 0;
	else if (queue->poll_ns < most)
		queue->poll_ns = !queue->poll_ns		? LOOP_POLL_FIRST_NS :
				 queue->poll_ns * 2 > most	? most :
								  queue->poll_ns * 2;
}

static inline int64_t loop_timeout(const struct block_queue *queue)
{
	if (queue->delayed) {
		uint64_t now = now_ns();

		return queue->delayed_until > now ? (int64_t)(queue->delayed_until - now) : 0;
	}
	return queue->kick < 0 ? LOOP_NO_KICK_NS : -1;
}

static inline void loop_sleep(struct block_queue *queue)
{
	uint64_t began = now_ns(), woke;
	uint32_t busy = queue->busy;
	bool polled = false;

	if (loop_linger(queue, began))
		return;
	loop_signal(queue);
	/* With the disk at work there is something to wait for that polling does not speed up. */
	if (queue->poll_ns && !queue->under_way && !queue->delayed) {
		if (loop_poll(queue, began)) {
			queue->poll_misses = 0;
			linger_note_wait(&queue->linger, began, now_ns(), busy);
			return;
		}
		polled = true;
	}
	if (loop_may_take(queue) && vring_enable_kicks(&queue->ring) && loop_has_chain(queue))
		return;
	if (seldom(queue->ring.fault && !queue->fault_told))
		return;
	if (seldom(loop_is_to_drain(queue) && !queue->under_way && queue->busy))
		return;
	queue->counters.sleeps++;
	uring_enter(&queue->uring, 1, loop_timeout(queue));
	if (!queue->ring.fault)
		vring_disable_kicks(&queue->ring);
	woke = now_ns();
	linger_note_wait(&queue->linger, began, woke, busy);
	loop_adapt(queue, woke - began, polled);
}

/* ---- the thread's life */

static inline void loop_tell_fault(struct block_queue *queue)
{
	uint64_t one = 1;

	queue->fault_told = true;
	/* A broken driver may kick as it likes, but not keep us busy with it. */
	uring_unwatch(&queue->uring, TAG_KICK, TAG_CANCEL);
	if (queue->err >= 0 && write(queue->err, &one, sizeof(one)) < 0)
		queue->counters.errors++;
	block_tell(queue->device);
}

static inline void loop_say_quiet(struct block_queue *queue, bool quiet)
{
	pthread_mutex_lock(&queue->lock);
	queue->quiet = quiet;
	pthread_cond_broadcast(&queue->changed);
	pthread_mutex_unlock(&queue->lock);
}

static inline void loop_run(struct block_queue *queue)
{
	for (;;) {
		bool any = loop_reap(queue), drain;

		any |= loop_take(queue);
		vring_publish(&queue->ring);
		drain = loop_is_to_drain(queue);	/* once: who ends has signalled */
		if (linger_is_prompt(&queue->linger) || drain)
			loop_signal(queue);
		if (seldom(queue->ring.fault && !queue->fault_told))
			loop_tell_fault(queue);
		if (seldom(drain)) {
			if (loop_flag(&queue->stop) && !queue->busy && !loop_may_replay(queue))
				return;
			loop_say_quiet(queue, !queue->busy);
		}
		if (any && (loop_has_chain(queue) || uring_has_completion(&queue->uring))) {
			if (queue->uring.pending)
				uring_enter(&queue->uring, 0, -1);
			continue;
		}
		loop_sleep(queue);
	}
}

static inline void *loop_main(void *argument)
{
	struct block_queue *queue = argument;
	const int *files = queue->device->files;
	int count = files[FILE_IMAGE] < 0 ? 0 : files[FILE_OVERLAY] < 0 ? 1 : 2;
	uint32_t completions = 2 * (queue->slot_count > LOOP_ENTRIES ? queue->slot_count : LOOP_ENTRIES);
	int error = uring_open(&queue->uring, LOOP_ENTRIES, completions, files, count);

	if (!error) {
		if (queue->kick >= 0)
			uring_watch(&queue->uring, queue->kick, TAG_KICK);
		uring_watch(&queue->uring, queue->wake, TAG_WAKE);
	}
	pthread_mutex_lock(&queue->lock);
	queue->error = error;
	queue->state = error ? LOOP_FAILED : LOOP_RUNS;
	pthread_cond_broadcast(&queue->changed);
	pthread_mutex_unlock(&queue->lock);
	if (error)
		return NULL;
	prctl(PR_SET_TIMERSLACK, 1UL);	/* what it sleeps by the clock is short */
	/* A predecessor that has died may have published what it did not signal. */
	if (queue->ring.log)
		loop_call(queue);
	vring_disable_kicks(&queue->ring);
	loop_run(queue);
	if (!queue->ring.fault)
		vring_enable_kicks(&queue->ring);
	uring_close(&queue->uring);
	return NULL;
}

/* ---- what Python calls, without its lock */

static inline void block_queue_free(struct block_queue *queue)
{
	uint32_t i;

	if (!queue)
		return;
	for (i = 0; queue->slots && i < queue->slot_count; i++)
		free(queue->slots[i].many);
	free(queue->slots);
	free(queue->replay);
	if (queue->bounces)
		munmap(queue->bounces, BLOCK_BOUNCES * BLOCK_BOUNCE_BYTES);
	if (queue->zeroes)
		munmap(queue->zeroes, BLOCK_ZERO_BYTES);
	if (queue->wake >= 0)
		close(queue->wake);
	pthread_mutex_destroy(&queue->lock);
	pthread_cond_destroy(&queue->changed);
	free(queue);
}

/* Make a queue of `size` entries with nothing in it but its slots; NULL: no memory. */
static inline struct block_queue *block_queue_new(struct block_device *device, uint32_t size)
{
	struct block_queue *queue = calloc(1, sizeof(*queue));

	if (!queue)
		return NULL;
	queue->device = device;
	queue->uring.fd = -1;
	queue->waiting_end = &queue->waiting;
	pthread_mutex_init(&queue->lock, NULL);
	pthread_cond_init(&queue->changed, NULL);
	queue->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	queue->slot_count = size < BLOCK_SLOTS ? size : BLOCK_SLOTS;
	queue->slots = calloc(queue->slot_count, sizeof(*queue->slots));
	queue->replay = calloc(size, sizeof(*queue->replay));
	if (!queue->slots || !queue->replay || queue->wake < 0) {
		block_queue_free(queue);
		return NULL;
	}
	return queue;
}

static inline void block_queue_wake(struct block_queue *queue)
{
	uint64_t one = 1;

	if (write(queue->wake, &one, sizeof(one)) < 0)
		return;	/* it is full: the thread will wake */
}

/* Start the thread of a queue whose ring is set up; 0 or -errno. */
static inline int block_queue_start(struct block_queue *queue)
{
	pthread_attr_t attributes;
	sigset_t all, before;
	int error;

	sigfillset(&all);
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, LOOP_STACK);
	/* Signals are the main thread's. */
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&queue->thread, &attributes, loop_main, queue);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attributes);
	if (error)
		return -error;
	pthread_mutex_lock(&queue->lock);
	while (queue->state == LOOP_STARTING)
		pthread_cond_wait(&queue->changed, &queue->lock);
	pthread_mutex_unlock(&queue->lock);
	if (queue->state == LOOP_FAILED)
		pthread_join(queue->thread, NULL);
	return queue->error;
}

/* Finish what is in flight and end the thread; return the next available index. */
static inline uint16_t block_queue_stop(struct block_queue *queue)
{
	__atomic_store_n(&queue->stop, true, __ATOMIC_RELEASE);
	block_queue_wake(queue);
	pthread_join(queue->thread, NULL);
	vring_retire_log(&queue->ring);
	return queue->ring.next_avail;
}

static inline void block_queue_enable(struct block_queue *queue, bool enabled)
{
	__atomic_store_n(&queue->enabled, enabled, __ATOMIC_RELEASE);
	block_queue_wake(queue);
}

/* Take no more requests, and return when none is in work; or go on. */
static inline void block_queue_pause(struct block_queue *queue, bool paused)
{
	pthread_mutex_lock(&queue->lock);
	queue->quiet = false;
	__atomic_store_n(&queue->paused, paused, __ATOMIC_RELEASE);
	block_queue_wake(queue);
	while (paused && !queue->quiet)
		pthread_cond_wait(&queue->changed, &queue->lock);
	pthread_mutex_unlock(&queue->lock);
}

#endif
