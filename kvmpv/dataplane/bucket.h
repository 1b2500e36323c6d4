/* SPDX-License-Identifier: MIT */
/*
 * Token buckets, shared by any number of threads without a lock. What is kept is
 * not the level but the time at which the bucket will be full again: taking
 * moves it ahead, and time passing is all that fills it.
 */
#ifndef KVMPV_DATAPLANE_BUCKET_H
#define KVMPV_DATAPLANE_BUCKET_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

struct bucket {
	uint64_t rate;		/* tokens a second; 0: no limit */
	uint64_t burst;		/* tokens that a full bucket holds */
	uint64_t full_at;	/* ns of CLOCK_MONOTONIC */
};

static inline uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ULL + now.tv_nsec;
}

static inline uint64_t bucket_ns(uint64_t tokens, uint64_t rate)
{
	return (uint64_t)((unsigned __int128)tokens * 1000000000 / rate);
}

static inline void bucket_set(struct bucket *bucket, uint64_t rate, uint64_t burst)
{
	__atomic_store_n(&bucket->burst, burst, __ATOMIC_RELAXED);
	__atomic_store_n(&bucket->rate, rate, __ATOMIC_RELAXED);
}

/*
 * Take tokens: return 0, or how many ns to wait before asking again. A bucket with
 * anything in it gives as many as are asked for, and owes for them: no request is too big.
 */
static inline uint64_t bucket_take(struct bucket *bucket, uint64_t now, uint64_t tokens)
{
	uint64_t rate = __atomic_load_n(&bucket->rate, __ATOMIC_RELAXED);
	uint64_t room, before, after;

	if (!rate)
		return 0;
	room = bucket_ns(__atomic_load_n(&bucket->burst, __ATOMIC_RELAXED), rate);
	before = __atomic_load_n(&bucket->full_at, __ATOMIC_RELAXED);
	do {
		if (before > now && before - now >= room)
			return before - now - room + 1;
		after = (before > now ? before : now) + bucket_ns(tokens, rate);
	} while (!__atomic_compare_exchange_n(&bucket->full_at, &before, after, true,
					      __ATOMIC_RELAXED, __ATOMIC_RELAXED));
	return 0;
}

/* Give back what was taken a moment ago. */
static inline void bucket_return(struct bucket *bucket, uint64_t tokens)
{
	uint64_t rate = __atomic_load_n(&bucket->rate, __ATOMIC_RELAXED);

	if (rate)
		__atomic_fetch_sub(&bucket->full_at, bucket_ns(tokens, rate), __ATOMIC_RELAXED);
}

struct limits {
	struct bucket operations;
	struct bucket bytes;
};

/* Take one operation of so many bytes from both: 0, or the ns to wait. */
static inline uint64_t limits_take(struct limits *limits, uint64_t now, uint64_t bytes)
{
	uint64_t wait = bucket_take(&limits->operations, now, 1);

	if (wait)
		return wait;
	wait = bucket_take(&limits->bytes, now, bytes);
	if (wait)
		bucket_return(&limits->operations, 1);
	return wait;
}

static inline bool limits_any(const struct limits *limits)
{
	return limits && (__atomic_load_n(&limits->operations.rate, __ATOMIC_RELAXED) ||
			  __atomic_load_n(&limits->bytes.rate, __ATOMIC_RELAXED));
}

#endif
