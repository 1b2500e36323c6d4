/* SPDX-License-Identifier: MIT */
/*
 * Packets between one virtqueue and a tap (virtio 1.2, section 5.1), a thread for
 * each queue. The kernel copies between the packet and the guest's own pages:
 * readv and writev with the virtio-net header in front, offloads included.
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

#define NET_BATCH 64		/* packets between two looks at whether to stop */
#define NET_TOGETHER 8		/* packets from which on io_uring is cheaper than writev */
#define NET_PUBLISH 16		/* packets that a driver waits for at most */
#define NET_SMALL 2048		/* bytes: what a packet without segmentation offload may have */
#define NET_FRAME_MAX 65600	/* header, Ethernet, 64 KiB, and some more */
#define NET_STOCK_PIECES 256	/* pieces in stock beyond which no further chain is taken */
#define NET_STOCK_CHAINS 256
#define NET_PIECES (NET_STOCK_PIECES + 2 * RING_MAX_PIECES)
#define NET_STACK (128 << 10)

/* Looking is cheaper than sleeping as long as the next packet comes within this time. */
#define NET_SPIN_MAX 20000	/* ns */
#define NET_SPIN_MIN 2000

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

/* ---- a queue */

struct net_counters {
	uint64_t packets;
	uint64_t bytes;		/* without headers */
	uint64_t drops;
	uint64_t kicks;		/* that woke us */
	uint64_t calls;
	uint64_t syscalls;	/* reads and writes of the tap, waits */
	uint64_t sleeps;
};

struct net_stock {
	uint16_t head;
	uint16_t pieces;
	uint32_t bytes;
};

struct net_queue {
	struct vring ring;
	struct limits *limits;
	struct net_counters counters;
	int tap, kick, call, err;
	int stop;		/* eventfd: end the thread */
	int broken;		/* eventfd of the device: told of a ring that broke; or -1 */
	int wait_kick;		/* epoll: kick and stop */
	int wait_all;		/* epoll: these and the tap */
	bool transmit;
	bool mergeable;
	bool discard;		/* transmit: a queue that is not enabled loses its packets */
	uint8_t header;
	bool running;
	bool stopping;
	uint32_t spin;		/* ns */
	pthread_t thread;
	struct uring uring;	/* transmit: the thread's own; fd -1: none */

	/* Receive: chains taken and not yet used, in order, and their pieces. */
	bool large;		/* the last packet was */
	uint32_t chain_first, chain_count;
	uint32_t piece_first, piece_count;
	uint64_t capacity;	/* bytes in these pieces */
	struct net_stock chains[NET_STOCK_CHAINS];
	struct iovec pieces[NET_PIECES];
	uint8_t spill[NET_FRAME_MAX];
};

static inline bool net_stopping(const struct net_queue *queue)
{
	return __atomic_load_n(&queue->stopping, __ATOMIC_ACQUIRE);
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
	vring_publish(&queue->ring);
	if (vring_should_notify(&queue->ring)) {
		net_count(&queue->counters.calls, 1);
		net_signal(queue->call);
	}
}

/* ---- waiting */

static inline void net_adapt(struct net_queue *queue, uint64_t slept)
{
	if (slept < NET_SPIN_MAX) {
		queue->spin = queue->spin ? queue->spin * 2 : NET_SPIN_MIN;
		if (queue->spin > NET_SPIN_MAX)
			queue->spin = NET_SPIN_MAX;
	} else {
		queue->spin /= 2;
		if (queue->spin < NET_SPIN_MIN)
			queue->spin = 0;
	}
}

static inline void net_sleep(struct net_queue *queue, int epoll)
{
	struct epoll_event events[3];
	uint64_t before = now_ns();
	int count, i;

	net_count(&queue->counters.sleeps, 1);
	net_count(&queue->counters.syscalls, 1);
	count = epoll_wait(epoll, events, 3, -1);
	for (i = 0; i < count; i++)
		if (events[i].data.fd == queue->kick)
			net_count(&queue->counters.kicks, 1);
	net_adapt(queue, now_ns() - before);
}

/* Wait for the driver to make something available; it may come at once. */
static inline void net_wait_for_driver(struct net_queue *queue)
{
	if (queue->spin) {
		uint64_t end = now_ns() + queue->spin;

		do {
			int i;

			for (i = 0; i < 50; i++) {
				if (vring_look(&queue->ring) || queue->ring.fault)
					return;
				__builtin_ia32_pause();
			}
		} while (now_ns() < end && !net_stopping(queue));
	}
	if (!vring_enable_kicks(&queue->ring) && !net_stopping(queue))
		net_sleep(queue, queue->wait_kick);
	vring_disable_kicks(&queue->ring);
}

/* Wait until a time has passed, or for an end. */
static inline void net_wait_for_time(struct net_queue *queue, uint64_t ns)
{
	struct pollfd end = { .fd = queue->stop, .events = POLLIN };
	struct timespec time = { .tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000 };

	net_count(&queue->counters.syscalls, 1);
	ppoll(&end, 1, &time, NULL);
}

/* ---- transmit */

/* Wait until the tap takes packets again, or for an end. */
static inline void net_wait_for_room(struct net_queue *queue)
{
	struct pollfd either[2] = {
		{ .fd = queue->stop, .events = POLLIN },
		{ .fd = queue->tap, .events = POLLOUT },
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
		sent = writev(queue->tap, pieces, count);
		if (usually(sent >= 0))
			return sent;
		if (errno != EAGAIN || net_stopping(queue))
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
	uint32_t count = 0;

	*wait = 0;
	while (count < NET_BATCH &&
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
		count++;
	}
	return count;
}

/* Send many packets by one system call. */
static inline void net_send_together(struct net_queue *queue, const struct net_sending *sending,
				     uint32_t count)
{
	struct iovec *pieces = queue->pieces;
	struct io_uring_cqe done;
	uint32_t i, submitted = 0;

	for (i = 0; i < count; pieces += sending[i++].pieces) {
		struct io_uring_sqe *sqe;

		if (seldom(sending[i].lost)) {
			net_sent(queue, -EINVAL);
			continue;
		}
		sqe = uring_next(&queue->uring);	/* it has room for a whole batch */
		sqe->opcode = IORING_OP_WRITEV;
		sqe->flags = IOSQE_FIXED_FILE;
		sqe->addr = (uintptr_t)pieces;
		sqe->len = sending[i].pieces;
		submitted++;
	}
	while (submitted) {
		net_count(&queue->counters.syscalls, 1);
		uring_enter(&queue->uring, submitted, -1);
		while (uring_completion(&queue->uring, &done)) {
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

	if (count >= NET_TOGETHER && queue->uring.fd >= 0) {
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

static inline void net_transmit(struct net_queue *queue)
{
	struct net_sending sending[NET_BATCH];

	/* Without io_uring, because it is switched off here, packets go one by one. */
	if (uring_open(&queue->uring, NET_BATCH, 2 * NET_BATCH, &queue->tap, 1))
		queue->uring.fd = -1;
	vring_disable_kicks(&queue->ring);
	while (!net_stopping(queue) && !queue->ring.fault) {
		uint64_t wait;
		uint32_t count = net_collect(queue, sending, &wait);

		net_send(queue, sending, count);
		if (count)
			net_publish(queue);
		if (wait)
			net_wait_for_time(queue, wait);
		else if (!count)
			net_wait_for_driver(queue);
	}
	if (queue->uring.fd >= 0)
		uring_close(&queue->uring);
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
 * Read a packet: into pieces of the stock as far as it is likely to need them,
 * and what is longer into `spill`. Return its length or -1; `direct` is how much
 * of it can have gone into pieces, and `used` into how many.
 */
static inline ssize_t net_read(struct net_queue *queue, uint64_t *direct, uint32_t *used)
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
	length = readv(queue->tap, pieces, count + 1);
	pieces[count] = kept;
	*direct = room;
	*used = count;
	return length;
}

/* Give a packet to the driver that has `length` bytes, all but the first `direct` in `spill`. */
static inline void net_deliver(struct net_queue *queue, uint64_t length, uint64_t direct,
			       uint32_t used)
{
	const struct guest_memory *memory = queue->ring.memory;
	uint64_t left = length, room = 0;
	uint16_t buffers = 0;
	uint32_t i;

	if (!queue->mergeable && length > net_oldest(queue)->bytes) {
		net_count(&queue->counters.drops, 1);
		return;
	}
	while (seldom(!net_stock_up(queue, length))) {
		if (queue->ring.fault || queue->chain_count == NET_STOCK_CHAINS ||
		    queue->piece_count >= NET_STOCK_PIECES || net_stopping(queue)) {
			net_count(&queue->counters.drops, 1);
			return;
		}
		net_publish(queue);
		net_wait_for_driver(queue);
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
	queue->large = length > NET_SMALL;
	net_count(&queue->counters.packets, 1);
	net_count(&queue->counters.bytes, length - queue->header);
	net_limits_take(queue->limits, length - queue->header);
}

/* Wait for a packet: look for it again and again for a short while, then sleep. */
static inline bool net_wait_for_packet(struct net_queue *queue, uint64_t *since)
{
	if (queue->spin) {
		uint64_t now = now_ns();

		if (!*since)
			*since = now;
		if (now - *since < queue->spin) {
			__builtin_ia32_pause();
			return false;
		}
	}
	net_sleep(queue, queue->wait_all);
	*since = 0;
	return true;
}

static inline void net_receive(struct net_queue *queue)
{
	uint64_t since = 0;
	int unpublished = 0;

	vring_disable_kicks(&queue->ring);
	while (!net_stopping(queue)) {
		uint64_t direct, wait;
		uint32_t used;
		ssize_t length;

		wait = net_limits_wait(queue->limits);
		if (!net_stock_up(queue, queue->large ? NET_FRAME_MAX : NET_SMALL) &&
		    queue->ring.fault)
			return;
		if (seldom(wait || !queue->chain_count)) {
			net_publish(queue);
			unpublished = 0;
			if (wait)
				net_wait_for_time(queue, wait);
			else
				net_wait_for_driver(queue);
			continue;
		}
		length = net_read(queue, &direct, &used);
		if (usually(length > queue->header)) {
			since = 0;
			net_deliver(queue, length, direct, used);
			if (++unpublished < NET_PUBLISH)
				continue;
		}
		if (unpublished)
			net_publish(queue);
		unpublished = 0;
		if (length <= queue->header)	/* none there, or a tap that is down */
			net_wait_for_packet(queue, &since);
	}
}

/* ---- the thread */

static void *net_thread(void *argument)
{
	struct net_queue *queue = argument;
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, NULL);
	if (queue->transmit)
		net_transmit(queue);
	else
		net_receive(queue);
	net_publish(queue);
	if (queue->ring.fault) {
		if (queue->err >= 0)
			net_signal(queue->err);
		if (queue->broken >= 0)
			net_signal(queue->broken);
	}
	return NULL;
}

static inline int net_watch(int epoll, int fd, uint32_t events)
{
	struct epoll_event event = { .events = events, .data.fd = fd };

	return fd < 0 ? 0 : epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

static inline void net_close(struct net_queue *queue)
{
	if (queue->stop >= 0)
		close(queue->stop);
	if (queue->wait_kick >= 0)
		close(queue->wait_kick);
	if (queue->wait_all >= 0)
		close(queue->wait_all);
	queue->stop = queue->wait_kick = queue->wait_all = -1;
}

/* Make what the thread waits with; 0 or -errno. The edge is what wakes: nobody reads a kick. */
static inline int net_open(struct net_queue *queue)
{
	queue->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	queue->wait_kick = epoll_create1(EPOLL_CLOEXEC);
	queue->wait_all = epoll_create1(EPOLL_CLOEXEC);
	if (queue->stop < 0 || queue->wait_kick < 0 || queue->wait_all < 0 ||
	    net_watch(queue->wait_kick, queue->stop, EPOLLIN) ||
	    net_watch(queue->wait_all, queue->stop, EPOLLIN) ||
	    net_watch(queue->wait_kick, queue->kick, EPOLLIN | EPOLLET) ||
	    net_watch(queue->wait_all, queue->tap, EPOLLIN | EPOLLET)) {
		int error = errno;

		net_close(queue);
		return -error;
	}
	return 0;
}

static inline int net_start(struct net_queue *queue)
{
	pthread_attr_t attributes;
	uint64_t drained;
	int error;

	if (queue->running)
		return 0;
	while (read(queue->stop, &drained, sizeof(drained)) > 0)
		;
	__atomic_store_n(&queue->stopping, false, __ATOMIC_RELEASE);
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, NET_STACK);
	error = pthread_create(&queue->thread, &attributes, net_thread, queue);
	pthread_attr_destroy(&attributes);
	queue->running = !error;
	return -error;
}

/* End the thread, and give back what it had in stock. */
static inline void net_stop(struct net_queue *queue)
{
	if (!queue->running)
		return;
	__atomic_store_n(&queue->stopping, true, __ATOMIC_RELEASE);
	net_signal(queue->stop);
	pthread_join(queue->thread, NULL);
	queue->running = false;
	queue->ring.next_avail -= queue->chain_count;
	queue->chain_count = queue->piece_count = 0;
	queue->chain_first = queue->piece_first = 0;
	queue->capacity = 0;
}

#endif
