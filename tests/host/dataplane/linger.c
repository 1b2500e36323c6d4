/* SPDX-License-Identifier: MIT */
/*
 * Drives linger.h by a clock of its own, as block_loop.h does: the periods of a driver
 * that is told by its arguments, and how each of them went. One line for each period.
 *
 * linger PERIODS PROMPT_NS LINGER_NS IDLE_PERCENT BUSY TOGETHER
 *	what a request takes each way, how much of a prompt period the disk is idle, how many
 *	requests each answer leaves to be given, and how many are answered at once by who lingers.
 *
 * linger signal TAKEN...
 *	requests taken before each step, with answers that wait: whether the driver is signalled.
 *
 * linger wait NS...
 *	waits of one who lingers: what it does after each of them.
 *
 * linger stuck STEPS
 *	in so many steps the disk does nothing: how often it is not waited for.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "linger.h"

static int signals(char **taken)
{
	struct linger linger = { .on = true };

	for (; *taken; taken++) {
		linger.taken = strtoul(*taken, NULL, 10);
		puts(linger_is_to_signal(&linger, true) ? "signal" : "hold");
	}
	return 0;
}

static int waits(char **ns)
{
	struct linger linger = { .on = true, .periods = LINGER_STAY };

	for (; *ns; ns++) {
		linger_note_wait(&linger, 0, strtoull(*ns, NULL, 10), 0);
		puts(linger.on ? "linger" : "prompt");
	}
	return 0;
}

static int stuck(unsigned long steps)
{
	struct linger linger = { .on = true, .prompt_ns = 1000, .taken = 1 };
	unsigned long count = 0;

	while (steps--) {
		count += linger_step(&linger, 0, 1) > 0;
		linger.taken = linger.given = 0;
	}
	printf("%lu\n", count);
	return 0;
}

int main(int argc, char **argv)
{
	struct linger linger = { 0 };
	uint64_t now = 1000000000, each, step;
	unsigned long periods, prompt, lingering, idle, busy, together, i;

	if (argc > 2 && !strcmp(argv[1], "signal"))
		return signals(argv + 2);
	if (argc > 2 && !strcmp(argv[1], "wait"))
		return waits(argv + 2);
	if (argc > 2 && !strcmp(argv[1], "stuck"))
		return stuck(strtoul(argv[2], NULL, 10));
	if (argc != 7)
		return 2;
	periods = strtoul(argv[1], NULL, 10);
	prompt = strtoul(argv[2], NULL, 10);
	lingering = strtoul(argv[3], NULL, 10);
	idle = strtoul(argv[4], NULL, 10);
	busy = strtoul(argv[5], NULL, 10);
	together = strtoul(argv[6], NULL, 10);
	linger_begin(&linger, now);
	while (periods--) {
		bool on = linger.on;

		each = on ? lingering : prompt;
		for (i = 0; i < LINGER_PERIOD || (on && i % together); i++) {
			uint64_t slept = on ? 0 : each * idle / 100;

			linger_note_wait(&linger, now, now + slept, 0);
			now += each;
			linger_note_answer(&linger, busy);
		}
		linger.taken = 1;
		step = linger_step(&linger, now, 0);
		printf("%s %llu\n", on ? "linger" : "prompt", (unsigned long long)step);
		linger.taken = linger.given = 0;
	}
	return 0;
}
