/* SPDX-License-Identifier: MIT */
/*
 * When to let requests gather. A thread that answers each one at once costs the driver a kick and
 * an interrupt for each, and where these take longer than the disk does, they are what the speed
 * depends on. There a thread does better that asks for no kicks, looks at its ring by the clock,
 * and signals when the driver has stopped to offer requests. What is better where depends on the
 * machine and on the load, so both are measured: in each period requests go one way, and what
 * a request took decides on the next.
 */
#ifndef KVMPV_DATAPLANE_LINGER_H
#define KVMPV_DATAPLANE_LINGER_H

#include <stdbool.h>
#include <stdint.h>

#define LINGER_PERIOD 128	/* answers */
#define LINGER_STAY 32		/* periods, until the other way is measured again */
#define LINGER_REST 16		/* periods, until it is tried again where it was not better */
#define LINGER_DEEP 32		/* it is tried if one answer in so many left others to be given */
#define LINGER_STEPS 4		/* requests that in the time of one step would go the prompt way */
#define LINGER_STEP_MAX_NS 1000000
#define LINGER_HELD 3		/* steps for which answers are held back while requests come */
#define LINGER_GIVEN 64		/* answers between two waits, after which the driver is signalled */
#define LINGER_EMPTY 8		/* steps in which nothing came, after which it waits for the disk */
#define LINGER_PAUSE_NS 10000000	/* after it there is nothing to compare with what was before */

struct linger {
	bool on;
	uint32_t periods;	/* that are left to go this way */
	uint64_t prompt_ns;	/* what a request took going the other */

	/* This period: */
	uint64_t began;
	uint64_t idle_ns;	/* that thread and disk had nothing to do */
	uint32_t answers;
	uint32_t deep;		/* of these, how many left others to be given */

	uint32_t taken, given;	/* requests, since the thread last waited */
	uint32_t held;		/* steps in which there were answers to signal, and more requests came */
	uint32_t empty;		/* steps in which nothing came, in a row */
};

static inline void linger_begin(struct linger *linger, uint64_t now)
{
	linger->began = now;
	linger->idle_ns = 0;
	linger->answers = linger->deep = 0;
}

/* Note an answer that leaves `busy` to be given. */
static inline void linger_note_answer(struct linger *linger, uint32_t busy)
{
	linger->given++;
	linger->answers++;
	linger->deep += busy > 0;
}

/*
 * Note that the thread waited, with `busy` requests to be answered. After a pause it goes the
 * prompt way, whatever it went: of a driver that pauses again and again no period is ever whole.
 */
static inline void linger_note_wait(struct linger *linger, uint64_t began, uint64_t now,
				     uint32_t busy)
{
	if (!busy)
		linger->idle_ns += now - began;
	if (now - began <= LINGER_PAUSE_NS)
		return;
	if (linger->on)
		linger->periods = 0;
	linger->on = false;
	linger_begin(linger, now);
}

/* Choose the way to go from here. */
static inline void linger_judge(struct linger *linger, uint64_t now)
{
	uint64_t took = now - linger->began, each = took / linger->answers;

	if (linger->on) {
		/*
		 * At first it has to be better by a fourth, or it is not worth what it does to
		 * the single request; later, not worse, for one period may be unlucky.
		 */
		bool first = linger->periods == LINGER_STAY;
		bool better = each * (first ? 5 : 4) <= linger->prompt_ns * 4;

		if (better && --linger->periods) {
			linger_begin(linger, now);
			return;
		}
		linger->on = false;
		linger->periods = better ? 0 : LINGER_REST;
	} else {
		linger->prompt_ns = each;
		if (linger->periods) {
			linger->periods--;
		} else if (linger->idle_ns * 2 > took &&
			   linger->deep * LINGER_DEEP >= linger->answers) {
			linger->on = true;
			linger->periods = LINGER_STAY;
		}
	}
	linger_begin(linger, now);
}

/* Say, where there is nothing to do at `now`, for how many ns to let requests gather; 0: wait. */
static inline uint64_t linger_step(struct linger *linger, uint64_t now, uint32_t under_way)
{
	uint64_t step;

	if (linger->answers >= LINGER_PERIOD)
		linger_judge(linger, now);
	if (!linger->on)
		return 0;
	if (linger->taken || linger->given)
		linger->empty = 0;
	else if (!under_way || ++linger->empty > LINGER_EMPTY)
		return 0;
	step = LINGER_STEPS * linger->prompt_ns;
	return step < LINGER_STEP_MAX_NS ? step : LINGER_STEP_MAX_NS;
}

/* Say, after a turn, whether the driver is to be signalled at once if it waits for an answer. */
static inline bool linger_is_prompt(const struct linger *linger)
{
	return !linger->on || linger->given >= LINGER_GIVEN;
}

/* Say, before a step, whether to signal the driver that waits for `unsignalled` answers. */
static inline bool linger_is_to_signal(struct linger *linger, bool unsignalled)
{
	bool now = unsignalled && (!linger->taken || linger->held == LINGER_HELD);

	linger->held = unsignalled && !now ? linger->held + 1 : 0;
	return now;
}

#endif
