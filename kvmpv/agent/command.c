/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Starting a command: its words, its environment, its ends of the streams.
 */
#include "agent.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

static const char *strings[MAX_STRINGS + 16];

static void exec_in_path(const char *const *argv, const char *const *env)
{
	const char *path = "/bin", *next;
	size_t name = strlen(argv[0]);
	int best = ENOENT;
	char file[4096];

	for (const char *const *e = env; *e; e++)
		if (!strncmp(*e, "PATH=", 5))
			path = *e + 5;
	for (; path; path = next) {
		size_t dir = strcspn(path, ":");

		next = path[dir] ? path + dir + 1 : NULL;
		if (dir + name + 2 > sizeof(file))
			continue;
		memcpy(file, path, dir);
		file[dir] = '/';
		memcpy(file + dir + 1, argv[0], name + 1);
		execve(file, (char *const *)argv, (char *const *)env);
		if (errno != ENOENT && errno != ENOTDIR)
			best = errno;
	}
	errno = best;
}

/* Returns the process id or -errno. A file of NULL: look argv[0] up in PATH. */
int spawn(const char *file, const char *const *argv, const char *const *env, const char *cwd,
	  const int fds[3], int tty)
{
	volatile int failure = 0;
	struct sigaction normal = { .sa_handler = SIG_DFL };
	pid_t pid = vfork();

	if (pid)
		return pid < 0 ? -errno : failure ? -failure : pid;
	/* The parent sleeps until execve: its memory is ours, its descriptors are not. */
	setsid();
	for (int i = 0; i < 3; i++)
		if (dup2(fds[i], i) < 0)
			goto failed;
	if (tty)
		ioctl(0, TIOCSCTTY, 1);
	if (*cwd && chdir(cwd) < 0)
		goto failed;
	sigaction(SIGPIPE, &normal, NULL);
	sigprocmask(SIG_UNBLOCK, &signals_handled, NULL);
	if (file || strchr(argv[0], '/'))
		execve(file ? file : argv[0], (char *const *)argv, (char *const *)env);
	else
		exec_in_path(argv, env);
failed:
	failure = errno;
	_exit(127);
}

static int open_pty(const struct run *run, int mine[STREAMS], int theirs[3])
{
	struct winsize size = { .ws_col = run->columns, .ws_row = run->rows };
	int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
	int unlock = 0, slave = -1;

	if (master >= 0 && !ioctl(master, TIOCSPTLCK, &unlock))
		slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (slave < 0) {
		int error = errno;

		if (master >= 0)
			close(master);
		return -error;
	}
	ioctl(master, TIOCSWINSZ, &size);
	mine[S_IN] = mine[S_OUT] = master;
	theirs[0] = theirs[1] = theirs[2] = slave;
	return 0;
}

static int open_pipes(const struct run *run, int mine[STREAMS], int theirs[3])
{
	for (int i = 0; i < STREAMS; i++) {
		int ends[2];

		if (i == S_IN && run->flags & RUN_NO_STDIN) {
			theirs[i] = open("/dev/null", O_RDONLY | O_CLOEXEC);
			if (theirs[i] < 0)
				return -errno;
			continue;
		}
		if (pipe2(ends, O_CLOEXEC) < 0)
			return -errno;
		mine[i] = ends[i == S_IN];
		theirs[i] = ends[i != S_IN];
		fcntl(mine[i], F_SETFL, O_NONBLOCK);
	}
	return 0;
}

static void close_all(int *fds, int count)
{
	for (int i = 0; i < count; i++) {
		for (int j = i + 1; j < count; j++)	/* a pty's ends are shared */
			if (fds[j] == fds[i])
				fds[j] = -1;
		if (fds[i] >= 0)
			close(fds[i]);
	}
}

/* Points strings[] at the payload's; returns their number or -1. */
static int split(const uint8_t *at, size_t length, unsigned int count, const char **into)
{
	const uint8_t *end = at + length;

	for (unsigned int i = 0; i < count; i++) {
		const uint8_t *nul = memchr(at, 0, (size_t)(end - at));

		if (!nul)
			return -1;
		into[i] = (const char *)at;
		at = nul + 1;
	}
	return at == end ? 0 : -1;
}

static int same_name(const char *a, const char *b)
{
	size_t n = strcspn(a, "=");

	return !strncmp(a, b, n + 1);
}

/* Adds the defaults that the peer's environment does not name. */
static void complete_env(const char **env, unsigned int count)
{
	unsigned int given = count, j;

	for (const char *const *d = default_env; *d; d++) {
		for (j = 0; j < given && !same_name(*d, env[j]); j++)
			;
		if (j == given)
			env[count++] = *d;
	}
	env[count] = NULL;
}

/*
 * Starts the command of an F_RUN frame. Returns its process id, -EPROTO if the
 * frame makes no sense, or -errno; mine[] are our ends of its streams.
 */
int command_start(const struct run *run, const uint8_t *text, size_t length, int mine[STREAMS])
{
	static const char *const shell[] = { "/bin/sh", "-c" };
	const char **argv = strings + 2, **env;
	int theirs[3] = { -1, -1, -1 }, pid;
	unsigned int count = 1u + run->argc + run->envc;
	const char *cwd;

	if (!run->argc || count > MAX_STRINGS || split(text, length, count, argv))
		return -EPROTO;
	cwd = argv[0];
	argv++;
	env = argv + run->argc;
	memmove(env + 1, env, run->envc * sizeof(*env));
	*env++ = NULL;
	env[run->envc] = NULL;
	if (!(run->flags & RUN_CLEAN_ENV))
		complete_env(env, run->envc);
	if (run->flags & RUN_SHELL) {
		argv -= 2;
		memcpy(argv, shell, sizeof(shell));
	}
	pid = run->flags & RUN_TTY ? open_pty(run, mine, theirs) : open_pipes(run, mine, theirs);
	if (pid == 0)
		pid = spawn(NULL, argv, env, cwd, theirs, run->flags & RUN_TTY);
	close_all(theirs, 3);
	return pid;
}
