/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * agent                   as process 1: a guest's init, serving /dev/kvmpv-exec
 * agent --serve DEVICE [LIVE...]
 *                         serve a device (as process 1 too, all being mounted);
 *                         LIVE are folders that the peer's side changes too
 * agent --service DEVICE  serve a device under systemd, which ends the machine
 * agent --fd NUMBER       serve a connected socket until it ends
 */
#include "agent.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#define EXEC_DEVICE "/dev/kvmpv-exec"

sigset_t signals_handled;

static int signals;

static void take_signals(void)
{
	static const int wanted[] = { SIGCHLD, SIGTERM, SIGINT, SIGUSR1, SIGUSR2 };

	sigemptyset(&signals_handled);
	sigaddset(&signals_handled, SIGCHLD);
	if (is_init)
		for (unsigned int i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++)
			sigaddset(&signals_handled, wanted[i]);
	sigprocmask(SIG_BLOCK, &signals_handled, NULL);
	signal(SIGPIPE, SIG_IGN);
	signals = signalfd(-1, &signals_handled, SFD_NONBLOCK | SFD_CLOEXEC);
}

static void reap(void)
{
	int status, pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		if (!session_reaped(pid, status))
			init_reaped(pid, status);
}

/* The signals are those of busybox's init. */
static void handle_signals(void)
{
	struct signalfd_siginfo info;

	while (read(signals, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
		if (info.ssi_signo == SIGCHLD)
			reap();
		else if (info.ssi_signo == SIGUSR1)
			power_wanted = POWER_HALT;
		else if (info.ssi_signo == SIGUSR2)
			power_wanted = POWER_OFF;
		else
			power_wanted = POWER_REBOOT;
	}
}

static int sooner(int a, int b)
{
	return a < 0 ? b : b < 0 || a < b ? a : b;
}

static void turn(void)
{
	static struct pollfd slots[2 + MAX_SESSIONS * 3];
	int timeout = sooner(link_timeout(), sooner(sessions_timeout(), init_timeout()));
	int count;

	slots[0] = (struct pollfd){ signals, POLLIN, 0 };
	link_poll(&slots[1]);
	count = sessions_poll(slots + 2);
	if (poll(slots, (nfds_t)(2 + count), timeout) < 0)
		return;
	if (slots[0].revents)
		handle_signals();
	link_handle(slots[1].revents);
	sessions_handle(slots + 2, count);
	link_handle(0);
	init_tick();
}

int main(int argc, char **argv)
{
	is_init = ends_machine = getpid() == 1;
	if (argc == 3 && !strcmp(argv[1], "--fd")) {
		link_use(atoi(argv[2]));
	} else if (argc >= 3 && !strcmp(argv[1], "--serve")) {
		link_open(argv[2]);
		for (int i = 3; i < argc; i++)
			live_add(argv[i]);
	} else if (argc == 3 && !strcmp(argv[1], "--service")) {
		link_open(argv[2]);
		ends_machine = 1;
	} else if (is_init) {
		init_mount();
		init_configure();
		link_open(EXEC_DEVICE);
	} else {
		static const char usage[] = "usage: agent --serve DEVICE [LIVE...] | --service DEVICE | --fd NUMBER\n";

		return write(2, usage, sizeof(usage) - 1) < 0 ? 2 : 2;
	}
	take_signals();
	if (is_init && argc < 3)
		init_start();
	while (!link_gone || sessions_timeout() >= 0) {
		turn();
		if (power_wanted && ends_machine && link_flushed())
			power(power_wanted);
	}
	return 0;
}
