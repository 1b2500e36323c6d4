/* SPDX-License-Identifier: MIT */
/*
 * Drives linger.h by a clock of its own, as block_loop.h does: the periods of a driver
 * that is told by its arguments, and how each of them went. One line for each period.
 *
 * linger PERIODS PROMPT_NS LINGER_NS IDLE_PERCENT BUSY
 *	what a request takes each way, how much of a prompt period the disk is idle, and how many
 *	requests each answer leaves to be given.
 *
 * linger signal TAKEN...
 *	requests taken before each step, with answers that wait: whether the driver is signalled.
 *
 * linger pause NS
 *	how it goes on after the driver has offered nothing for so long.
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

int main(int argc, char **argv)
{
	struct linger linger = { 0 };
	uint64_t now = 1000000000, each, step;
	unsigned long periods, prompt, lingering, idle, busy, i;

	if (argc > 2 && !strcmp(argv[1], "signal"))
		return signals(argv + 2);
	if (argc == 3 && !strcmp(argv[1], "pause")) {
		linger.on = true;
		linger_note_wait(&linger, now, now + strtoul(argv[2], NULL, 10), 0);
		puts(linger.on ? "linger" : "prompt");
		return 0;
	}
	if (argc != 6)
		return 2;
	periods = strtoul(argv[1], NULL, 10);
	prompt = strtoul(argv[2], NULL, 10);
	lingering = strtoul(argv[3], NULL, 10);
	idle = strtoul(argv[4], NULL, 10);
	busy = strtoul(argv[5], NULL, 10);
	linger_begin(&linger, now);
	while (periods--) {
		bool on = linger.on;

		each = on ? lingering : prompt;
		for (i = 0; i < LINGER_PERIOD; i++) {
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
