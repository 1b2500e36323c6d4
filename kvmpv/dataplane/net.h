/* SPDX-License-Identifier: MIT */
/*
 * Packets between a pair of virtqueues and a tap (virtio 1.2, section 5.1), a thread
 * for each pair. The kernel copies between the packet and the guest's own pages:
 * readv and writev with the virtio-net header in front, offloads included.
 *
 * One thread has both directions, so that what came while it sent, and what is sent,
 * is shown to the driver at once and takes one interrupt (docs/decisions/, 0013).
 *
 * Both directions use a queue strictly in order. So the used index tells where a
 * thread was that died, and its successor goes on from there without a log.
 */
#ifndef KVMPV_DATAPLANE_NET_H
#define KVMPV_DATAPLANE_NET_H

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "bucket.h"
#include "ring.h"
#include "uring.h"

#define NET_BATCH 64		/* packets that are sent in one turn */
#define NET_TURN (512 << 10)	/* bytes from which on a turn takes no more of them */
#define NET_TOGETHER 8		/* packets from which on io_uring is cheaper than writev */
#define NET_RECEIVE 16		/* packets that are received in one turn */
#define NET_SMALL 2048		/* bytes: what a packet without segmentation offload may have */
#define NET_FRAME_MAX 65600	/* header, Ethernet, 64 KiB, and some more */
#define NET_STOCK_PIECES 256	/* pieces in stock beyond which no further chain is taken */
#define NET_STOCK_CHAINS 256
#define NET_PIECES (NET_STOCK_PIECES + 2 * RING_MAX_PIECES)
#define NET_STACK (128 << 10)

/* Looking is cheaper than sleeping as long as the next packet comes within this time. */
#define NET_SPIN_MAX 20000	/* ns */
#define NET_SPIN_MIN 2000
#define NET_NO_KICK_NS 1000000	/* how often a queue without a kick is looked at, when idle */

#define NET_NUM_BUFFERS 10	/* where struct virtio_net_hdr_v1 has it */

/* ---- limits: what has come through is taken from the bucket, which may then owe */

/* How many ns the next packet has to wait. */
static inline uint64_t net_limits_wait(struct limits *limits)
{
	uint64_t now, packets, bytes;

	if (usually(!limits_any(limits)))
		return 0;
	now = now_ns();
	packets = bucket_take(&limits->operations, now, 0);
	bytes = bucket_take(&limits->bytes, now, 0);
	return bytes > packets ? bytes : packets;
}

static inline void net_limits_take(struct limits *limits, uint64_t bytes)
{
	uint64_t now;

	if (usually(!limits_any(limits)))
		return;
	now = now_ns();
	bucket_take(&limits->operations, now, 1);
	bucket_take(&limits->bytes, now, bytes);
}

/* ---- a queue, and the pair that it is of */

struct net_counters {
	uint64_t packets;
	uint64_t bytes;		/* without headers */
	uint64_t drops;
	uint64_t kicks;		/* that woke us */
	uint64_t calls;
	uint64_t syscalls;	/* reads and writes of the tap, and sleeps */
	uint64_t sleeps;	/* that something for this queue ended */
};

struct net_stock {
	uint16_t head;
	uint16_t pieces;
	uint32_t bytes;
};

struct net_queue {
	struct vring ring;
	struct limits *limits;
	struct net_pair *pair;
	struct net_counters counters;
	int kick, call, err;
	int broken;		/* eventfd of the device: told of a ring that broke; or -1 */
	bool transmit;
	bool mergeable;
	bool discard;		/* transmit: a queue that is not enabled loses its packets */
	uint8_t header;
	bool served;		/* by the pair's thread */
	bool fault_told;

	/* Receive: chains taken and not yet used, in order, and their pieces. */
	bool large;		/* the last packet was */
	uint64_t held;		/* bytes of a packet that is read and has no room yet; 0: none */
	uint64_t held_direct;	/* how much of it can have gone into pieces, ... */
	uint32_t held_used;	/* ... and into how many */
	uint32_t chain_first, chain_count;
	uint32_t piece_first, piece_count;
	uint64_t capacity;	/* bytes in these pieces */
	struct net_stock chains[NET_STOCK_CHAINS];
	struct iovec pieces[NET_PIECES];
	uint8_t spill[NET_FRAME_MAX];
};

struct net_pair {
	struct net_queue *receive, *transmit;	/* those that are served, or NULL */
	int tap;
	int stop;		/* eventfd: end the thread */
	int kicks;		/* epoll: kicks and stop */
	int all;		/* epoll: these and the tap */
	bool running;
	bool stopping;
	uint32_t spin;		/* ns */
	pthread_t thread;
	struct uring uring;	/* to send by; the thread's own; fd -1: none */
};

static inline bool net_stopping(const struct net_pair *pair)
{
	return __atomic_load_n(&pair->stopping, __ATOMIC_ACQUIRE);
}

static inline void net_count(uint64_t *counter, uint64_t more)
{
	/* One writer; readers want no torn value. */
	__atomic_store_n(counter, *counter + more, __ATOMIC_RELAXED);
}

static inline void net_signal(int fd)
{
	static const uint64_t one = 1;

	if (write(fd, &one, sizeof(one)) < 0)
		return;	/* full: it is signalled already */
}

/* Show the driver what is done, and signal it if it waits for that. */
static inline void net_publish(struct net_queue *queue)
{
	if (!queue)
		return;
	vring_publish(&queue->ring);
	if (vring_should_notify(&queue->ring)) {
		net_count(&queue->counters.calls, 1);
		net_signal(queue->call);
	}
}

/* ---- waiting */

/* What an epoll tells. */
enum net_event { NET_STOP, NET_KICK_RECEIVE, NET_KICK_TRANSMIT, NET_TAP };

static inline void net_adapt(struct net_pair *pair, uint64_t slept)
{
	if (slept < NET_SPIN_MAX) {
		pair->spin = pair->spin ? pair->spin * 2 : NET_SPIN_MIN;
		if (pair->spin > NET_SPIN_MAX)
			pair->spin = NET_SPIN_MAX;
	} else {
		pair->spin /= 2;
		if (pair->spin < NET_SPIN_MIN)
			pair->spin = 0;
	}
}

/* Tell whether to look again at once: for a short while after the last work that came. */
static inline bool net_look_on(struct net_pair *pair, uint64_t *since)
{
	uint64_t now;

	if (!pair->spin)
		return false;
	now = now_ns();
	if (!*since)
		*since = now;
	if (now - *since >= pair->spin)
		return false;
	__builtin_ia32_pause();
	return true;
}

/* Sleep until something comes, or for some ns where that is not 0. */
static inline void net_sleep(struct net_pair *pair, int epoll, uint64_t ns)
{
	struct timespec time = { .tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000 };
	struct net_queue *receive = pair->receive, *transmit = pair->transmit, *woken = NULL;
	struct epoll_event events[4];
	uint64_t before = now_ns();
	int count, i;

	count = epoll_pwait2(epoll, events, 4, ns ? &time : NULL, NULL);
	for (i = 0; i < count; i++) {
		uint32_t what = events[i].data.u32;

		if (what == NET_KICK_TRANSMIT && transmit) {
			net_count(&transmit->counters.kicks, 1);
			woken = transmit;
		} else if (what == NET_KICK_RECEIVE && receive) {
			net_count(&receive->counters.kicks, 1);
			woken = receive;
		} else if (what == NET_TAP && receive) {
			woken = receive;
		}
	}
	if (woken) {
		net_count(&woken->counters.sleeps, 1);
		net_count(&woken->counters.syscalls, 1);
	}
	if (!ns)
		net_adapt(pair, now_ns() - before);
}

/* ---- transmit */

/* Wait until the tap takes packets again, or for an end. */
static inline void net_wait_for_room(struct net_queue *queue)
{
	struct pollfd either[2] = {
		{ .fd = queue->pair->stop, .events = POLLIN },
		{ .fd = queue->pair->tap, .events = POLLOUT },
	};

	net_count(&queue->counters.syscalls, 1);
	poll(either, 2, -1);
}

/* A chain that is being sent; its pieces follow those of the one before it. */
struct net_sending {
	uint16_t head;
	uint16_t pieces;
	bool lost;
};

/* What came of sending: the bytes, or -errno. */
static inline void net_sent(struct net_queue *queue, int64_t result)
{
	if (result < 0) {
		/* A header that makes no sense, no memory, or a tap that is down. */
		net_count(&queue->counters.drops, 1);
		return;
	}
	net_count(&queue->counters.packets, 1);
	net_count(&queue->counters.bytes, result - queue->header);
}

static inline int64_t net_write(struct net_queue *queue, const struct iovec *pieces, uint32_t count)
{
	for (;;) {
		ssize_t sent;

		net_count(&queue->counters.syscalls, 1);
		sent = writev(queue->pair->tap, pieces, count);
		if (usually(sent >= 0))
			return sent;
		if (errno != EAGAIN || net_stopping(queue->pair))
			return -errno;
		net_publish(queue);
		net_wait_for_room(queue);
	}
}

/* Take chains to send: how many; `wait` is how long the next one has to wait for its limit. */
static inline uint32_t net_collect(struct net_queue *queue, struct net_sending *sending,
				   uint64_t *wait)
{
	struct ring_chain chain = { .pieces = queue->pieces };
	uint64_t bytes = 0;
	uint32_t count = 0;

	*wait = 0;
	while (count < NET_BATCH && bytes < NET_TURN &&
	       chain.pieces + RING_MAX_PIECES <= queue->pieces + NET_PIECES) {
		*wait = net_limits_wait(queue->limits);
		if (*wait || vring_pop(&queue->ring, &chain) <= 0)
			break;
		sending[count].head = chain.head;
		sending[count].pieces = chain.out_count;
		sending[count].lost = __atomic_load_n(&queue->discard, __ATOMIC_RELAXED) ||
				      chain.out_bytes <= queue->header ||
				      chain.out_bytes > NET_FRAME_MAX;
		if (!sending[count].lost)
			net_limits_take(queue->limits, chain.out_bytes - queue->header);
		chain.pieces += chain.out_count;
		bytes += chain.out_bytes;
		count++;
	}
	return count;
}

/* Send many packets by one system call. */
static inline void net_send_together(struct net_queue *queue, const struct net_sending *sending,
				     uint32_t count)
{
	struct uring *uring = &queue->pair->uring;
	struct iovec *pieces = queue->pieces;
	struct io_uring_cqe done;
	uint32_t i, submitted = 0;

	for (i = 0; i < count; pieces += sending[i++].pieces) {
		struct io_uring_sqe *sqe;

		if (seldom(sending[i].lost)) {
			net_sent(queue, -EINVAL);
			continue;
		}
		sqe = uring_next(uring);	/* it has room for a whole batch */
		sqe->opcode = IORING_OP_WRITEV;
		sqe->flags = IOSQE_FIXED_FILE;
		sqe->addr = (uintptr_t)pieces;
		sqe->len = sending[i].pieces;
		submitted++;
	}
	while (submitted) {
		net_count(&queue->counters.syscalls, 1);
		uring_enter(uring, submitted, -1);
		while (uring_completion(uring, &done)) {
			net_sent(queue, done.res);
			submitted--;
		}
	}
}

static inline void net_send(struct net_queue *queue, const struct net_sending *sending,
			    uint32_t count)
{
	struct iovec *pieces = queue->pieces;
	uint32_t i;

	if (count >= NET_TOGETHER && queue->pair->uring.fd >= 0) {
		net_send_together(queue, sending, count);
	} else {
		for (i = 0; i < count; pieces += sending[i++].pieces)
			net_sent(queue, sending[i].lost ?
						-EINVAL :
						net_write(queue, pieces, sending[i].pieces));
	}
	for (i = 0; i < count; i++)
		vring_push(&queue->ring, sending[i].head, 0);
}

/* Send what there is for one turn: how many packets. */
static inline uint32_t net_transmit(struct net_queue *queue, uint64_t *wait)
{
	struct net_sending sending[NET_BATCH];
	uint32_t count = net_collect(queue, sending, wait);

	net_send(queue, sending, count);
	return count;
}

/* ---- receive */

/* Take chains until there is room for `bytes`; false when the driver has given too few. */
static inline bool net_stock_up(struct net_queue *queue, uint64_t bytes)
{
	while (queue->capacity < bytes && queue->chain_count < NET_STOCK_CHAINS &&
	       queue->piece_count < NET_STOCK_PIECES) {
		struct ring_chain chain;
		struct net_stock *stock;

		if (queue->piece_first + queue->piece_count + RING_MAX_PIECES + 1 > NET_PIECES) {
			memmove(queue->pieces, queue->pieces + queue->piece_first,
				queue->piece_count * sizeof(queue->pieces[0]));
			queue->piece_first = 0;
		}
		chain.pieces = queue->pieces + queue->piece_first + queue->piece_count;
		if (vring_pop(&queue->ring, &chain) <= 0)
			return false;
		if (seldom(chain.out_count || !chain.in_count)) {
			ring_break(&queue->ring, RING_REQUEST);
			return false;
		}
		stock = &queue->chains[(queue->chain_first + queue->chain_count) %
				       NET_STOCK_CHAINS];
		stock->head = chain.head;
		stock->pieces = chain.in_count;
		stock->bytes = chain.in_bytes;
		queue->chain_count++;
		queue->piece_count += chain.in_count;
		queue->capacity += chain.in_bytes;
	}
	return queue->capacity >= bytes;
}

static inline struct net_stock *net_oldest(struct net_queue *queue)
{
	return &queue->chains[queue->chain_first];
}

static inline void net_use_oldest(struct net_queue *queue, uint32_t written)
{
	struct net_stock *stock = net_oldest(queue);

	vring_push(&queue->ring, stock->head, written);
	queue->piece_first += stock->pieces;
	queue->piece_count -= stock->pieces;
	queue->capacity -= stock->bytes;
	queue->chain_first = (queue->chain_first + 1) % NET_STOCK_CHAINS;
	queue->chain_count--;
}

/*
 * Read a packet, which is held then: into pieces of the stock as far as it is likely
 * to need them, and what is longer into `spill`. False: there is none.
 */
static inline bool net_read(struct net_queue *queue)
{
	struct iovec *pieces = queue->pieces + queue->piece_first;
	uint32_t most = queue->piece_count, count = 0;
	uint64_t room = 0, likely = queue->large ? NET_FRAME_MAX : NET_SMALL;
	struct iovec kept;
	ssize_t length;

	if (!queue->mergeable) {
		most = net_oldest(queue)->pieces;
		likely = NET_FRAME_MAX;
	}
	if (most > RING_MAX_PIECES - 1)
		most = RING_MAX_PIECES - 1;
	while (count < most && room < likely)
		room += pieces[count++].iov_len;
	kept = pieces[count];
	pieces[count].iov_base = queue->spill;
	pieces[count].iov_len = sizeof(queue->spill);
	net_count(&queue->counters.syscalls, 1);
	length = readv(queue->pair->tap, pieces, count + 1);
	pieces[count] = kept;
	if (length <= queue->header)	/* or a tap that is down */
		return false;
	queue->held = length;
	queue->held_direct = room;
	queue->held_used = count;
	return true;
}

/* Lose the packet that is held. */
static inline void net_drop(struct net_queue *queue)
{
	queue->held = 0;
	net_count(&queue->counters.drops, 1);
}

/* Give the packet that is held to the driver; false: that has given too little room. */
static inline bool net_deliver(struct net_queue *queue)
{
	const struct guest_memory *memory = queue->ring.memory;
	uint64_t length = queue->held, direct = queue->held_direct, left = length, room = 0;
	uint32_t used = queue->held_used, i;
	uint16_t buffers = 0;

	if (!queue->mergeable && length > net_oldest(queue)->bytes) {
		net_drop(queue);
		return true;
	}
	if (seldom(!net_stock_up(queue, length))) {
		if (!queue->ring.fault && queue->chain_count < NET_STOCK_CHAINS &&
		    queue->piece_count < NET_STOCK_PIECES)
			return false;
		net_drop(queue);
		return true;
	}
	store_done_by_kernel(memory, queue->pieces + queue->piece_first, used,
			     length < direct ? length : direct);
	if (length > direct)
		store_bytes(memory, queue->pieces + queue->piece_first + used,
			    queue->piece_count - used, 0, queue->spill, length - direct);
	for (i = 0; room < length; i++) {
		room += queue->chains[(queue->chain_first + i) % NET_STOCK_CHAINS].bytes;
		buffers++;
	}
	if (queue->header > NET_NUM_BUFFERS)
		store_bytes(memory, queue->pieces + queue->piece_first, queue->piece_count,
			    NET_NUM_BUFFERS, &buffers, sizeof(buffers));
	while (buffers--) {
		uint32_t here = net_oldest(queue)->bytes;

		if (here > left)
			here = left;
		net_use_oldest(queue, here);
		left -= here;
	}
	queue->held = 0;
	queue->large = length > NET_SMALL;
	net_count(&queue->counters.packets, 1);
	net_count(&queue->counters.bytes, length - queue->header);
	net_limits_take(queue->limits, length - queue->header);
	return true;
}

/* Receive what there is for one turn: how many packets. */
static inline uint32_t net_receive(struct net_queue *queue, uint64_t *wait)
{
	uint32_t count;

	for (count = 0; count < NET_RECEIVE; count++) {
		*wait = net_limits_wait(queue->limits);
		if (seldom(*wait))
			break;
		if (usually(!queue->held)) {
			net_stock_up(queue, queue->large ? NET_FRAME_MAX : NET_SMALL);
			if (queue->ring.fault || !queue->chain_count || !net_read(queue))
				break;
		}
		if (!net_deliver(queue))
			break;
	}
	return count;
}

/* ---- the thread */

/* Tell front end and device that a queue cannot go on. */
static inline void net_tell_broken(struct net_queue *queue)
{
	if (queue->err >= 0)
		net_signal(queue->err);
	if (queue->broken >= 0)
		net_signal(queue->broken);
}

/* Tell of a ring that its driver has broken, once. */
static inline void net_tell_fault(struct net_queue *queue)
{
	if (usually(!queue || !queue->ring.fault || queue->fault_told))
		return;
	queue->fault_told = true;
	net_tell_broken(queue);
}

/* Wait with nothing to do; `transmit_wait` and `receive_wait`, in ns, is what limits say. */
static inline void net_wait(struct net_pair *pair, struct net_queue *transmit,
			    struct net_queue *receive, uint64_t transmit_wait,
			    uint64_t receive_wait)
{
	/* A queue with no room for packets waits for its driver. */
	bool ready = receive && !receive_wait && receive->chain_count && !receive->held;
	uint64_t wait = transmit_wait;
	bool more = false;

	if (receive_wait && (!wait || receive_wait < wait))
		wait = receive_wait;
	if (seldom((transmit && transmit->kick < 0) || (receive && receive->kick < 0)) &&
	    (!wait || wait > NET_NO_KICK_NS))
		wait = NET_NO_KICK_NS;
	if (transmit && !transmit_wait)
		more |= vring_enable_kicks(&transmit->ring);
	if (receive && !receive_wait && !ready)
		more |= vring_enable_kicks(&receive->ring);
	if (!more && !net_stopping(pair))
		net_sleep(pair, ready ? pair->all : pair->kicks, wait);
	if (transmit)
		vring_disable_kicks(&transmit->ring);
	if (receive)
		vring_disable_kicks(&receive->ring);
}

static inline void net_serve(struct net_pair *pair)
{
	uint64_t since = 0;

	if (pair->transmit)
		vring_disable_kicks(&pair->transmit->ring);
	if (pair->receive)
		vring_disable_kicks(&pair->receive->ring);
	while (!net_stopping(pair)) {
		struct net_queue *transmit = pair->transmit, *receive = pair->receive;
		uint64_t transmit_wait = 0, receive_wait = 0;
		uint32_t done = 0;

		if (transmit && transmit->ring.fault)
			transmit = NULL;
		if (receive && receive->ring.fault)
			receive = NULL;
		if (transmit)
			done += net_transmit(transmit, &transmit_wait);
		if (receive)
			done += net_receive(receive, &receive_wait);
		if (done) {
			net_publish(transmit);
			net_publish(receive);
			since = 0;
		}
		net_tell_fault(pair->transmit);	/* it may have come while we waited, too */
		net_tell_fault(pair->receive);
		if (done || (!transmit_wait && !receive_wait && net_look_on(pair, &since)))
			continue;
		net_wait(pair, transmit, receive, transmit_wait, receive_wait);
		since = 0;
	}
}

static void *net_thread(void *argument)
{
	struct net_pair *pair = argument;
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, NULL);
	/* Without io_uring, because it is switched off here, packets go one by one. */
	if (!pair->transmit || uring_open(&pair->uring, NET_BATCH, 2 * NET_BATCH, &pair->tap, 1))
		pair->uring.fd = -1;
	net_serve(pair);
	if (pair->uring.fd >= 0)
		uring_close(&pair->uring);
	return NULL;
}

static inline int net_watch(int epoll, int fd, uint32_t events, enum net_event what)
{
	struct epoll_event event = { .events = events, .data.u32 = what };

	return fd < 0 ? 0 : epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

static inline void net_close(struct net_pair *pair)
{
	if (pair->stop >= 0)
		close(pair->stop);
	if (pair->kicks >= 0)
		close(pair->kicks);
	if (pair->all >= 0)
		close(pair->all);
	pair->stop = pair->kicks = pair->all = -1;
}

/* Make what the thread waits with; 0 or -errno. The edge is what wakes: nobody reads a kick. */
static inline int net_open(struct net_pair *pair)
{
	pair->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	pair->kicks = epoll_create1(EPOLL_CLOEXEC);
	pair->all = epoll_create1(EPOLL_CLOEXEC);
	if (pair->stop < 0 || pair->kicks < 0 || pair->all < 0 ||
	    net_watch(pair->kicks, pair->stop, EPOLLIN, NET_STOP) ||
	    net_watch(pair->all, pair->stop, EPOLLIN, NET_STOP) ||
	    net_watch(pair->all, pair->tap, EPOLLIN | EPOLLET, NET_TAP)) {
		int error = errno;

		net_close(pair);
		return -error;
	}
	return 0;
}

/* End the thread: both queues stand still. */
static inline void net_halt(struct net_pair *pair)
{
	if (!pair->running)
		return;
	__atomic_store_n(&pair->stopping, true, __ATOMIC_RELEASE);
	net_signal(pair->stop);
	pthread_join(pair->thread, NULL);
	pair->running = false;
}

static inline int net_run(struct net_pair *pair)
{
	pthread_attr_t attributes;
	uint64_t drained;
	int error;

	while (read(pair->stop, &drained, sizeof(drained)) > 0)
		;
	__atomic_store_n(&pair->stopping, false, __ATOMIC_RELEASE);
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, NET_STACK);
	error = pthread_create(&pair->thread, &attributes, net_thread, pair);
	pthread_attr_destroy(&attributes);
	pair->running = !error;
	return -error;
}

static inline struct net_queue **net_place(struct net_queue *queue)
{
	return queue->transmit ? &queue->pair->transmit : &queue->pair->receive;
}

/* Take a queue out of its pair, whose thread is ended. */
static inline void net_leave(struct net_queue *queue)
{
	*net_place(queue) = NULL;
	queue->served = false;
	if (queue->kick >= 0) {
		epoll_ctl(queue->pair->kicks, EPOLL_CTL_DEL, queue->kick, NULL);
		epoll_ctl(queue->pair->all, EPOLL_CTL_DEL, queue->kick, NULL);
	}
}

/* Have the thread go on with the queue that is left, if there is one. */
static inline void net_go_on(struct net_pair *pair)
{
	struct net_queue *left = pair->receive ? pair->receive : pair->transmit;

	if (left && net_run(pair))
		net_tell_broken(left);
}

/* Have the pair's thread serve a queue, from where it was stopped; 0 or -errno. */
static inline int net_start(struct net_queue *queue)
{
	enum net_event what = queue->transmit ? NET_KICK_TRANSMIT : NET_KICK_RECEIVE;
	struct net_pair *pair = queue->pair;
	int error;

	if (queue->served)
		return 0;
	if (*net_place(queue))
		return -EBUSY;
	net_halt(pair);
	*net_place(queue) = queue;
	queue->served = true;
	if (net_watch(pair->kicks, queue->kick, EPOLLIN | EPOLLET, what) ||
	    net_watch(pair->all, queue->kick, EPOLLIN | EPOLLET, what))
		error = -errno;
	else
		error = net_run(pair);
	if (error) {
		net_leave(queue);
		net_go_on(pair);
	}
	return error;
}

/* Have it served no more, and give back what it had in stock. */
static inline void net_stop(struct net_queue *queue)
{
	if (!queue->served)
		return;
	net_halt(queue->pair);
	net_leave(queue);
	if (queue->held)
		net_drop(queue);
	queue->ring.next_avail -= queue->chain_count;
	queue->chain_count = queue->piece_count = 0;
	queue->chain_first = queue->piece_first = 0;
	queue->capacity = 0;
	net_go_on(queue->pair);
}

#endif
