/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Process 1 of a small guest: what must be mounted, a shell on the terminal,
 * the end of the machine. No scripts: under an emulator each process costs.
 */
#include "agent.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define RESPAWN_MS 1000
#define TERM_MS 500

int is_init, ends_machine;
int power_wanted;

const char *const default_env[] = {
	"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
	"HOME=/root", "USER=root", "LOGNAME=root", "SHELL=/bin/sh", "TERM=linux", NULL,
};

static char cmdline[4096];
static char *run_command;	/* kvmpv.run= */
static const char *hostname = "kvmpv";	/* kvmpv.hostname=, or the kernel's own hostname= */
static int no_network;		/* kvmpv.net=off */
static const char *root, *root_type, *root_init;	/* root=, rootfstype=, init= */
static int root_read_only;	/* ro */
static const char *shares[64];	/* kvmpv.share= */
static unsigned int share_count;
static int end = POWER_OFF;	/* kvmpv.end= */
static enum { SHELL_ON, SHELL_OFF, SHELL_ONCE } shell;	/* kvmpv.shell= */
static int child;		/* the shell, or kvmpv.run's command */
static long started, restart_at;

long now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

void init_mount(void)
{
	static const struct { const char *type, *path, *options; unsigned long flags; } all[] = {
		{ "devtmpfs", "/dev", "mode=0755", MS_NOSUID },
		{ "proc", "/proc", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC },
		{ "sysfs", "/sys", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC },
		{ "devpts", "/dev/pts", "mode=0620,gid=5,ptmxmode=0666", MS_NOSUID | MS_NOEXEC },
		{ "tmpfs", "/run", "mode=0755", MS_NOSUID | MS_NODEV },
		{ "tmpfs", "/tmp", "mode=1777", MS_NOSUID | MS_NODEV },
	};

	for (unsigned int i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		if (mount(all[i].type, all[i].path, all[i].type, all[i].flags, all[i].options) == 0)
			continue;
		if (errno != ENOENT)	/* mounted already, or not in this kernel */
			continue;
		mkdir(all[i].path, 0755);
		mount(all[i].type, all[i].path, all[i].type, all[i].flags, all[i].options);
	}
	mkdir("/dev/shm", 01777);
	symlink("/proc/self/fd", "/dev/fd");
}

/* Cuts the next word off, a quoted part of it included, and returns it. */
static char *next_word(char **rest)
{
	char *from = *rest, *to, *word;
	int quoted = 0;

	while (*from == ' ' || *from == '\n')
		from++;
	if (!*from)
		return NULL;
	word = to = from;
	for (; *from && (quoted || (*from != ' ' && *from != '\n')); from++) {
		if (*from == '"')
			quoted = !quoted;
		else
			*to++ = *from;
	}
	*rest = *from ? from + 1 : from;
	*to = 0;
	return word;
}

static const char *value_of(const char *word, const char *key)
{
	size_t n = strlen(key);

	return strncmp(word, key, n) ? NULL : word + n;
}

/* TAG[:PATH]: a folder of the host, at /mnt/TAG if there is no PATH. */
static void mount_share(const char *value)
{
	size_t tag_size = strcspn(value, ":");
	const char *path = value[tag_size] ? value + tag_size + 1 : NULL;
	char tag[64], place[512];

	if (!tag_size || tag_size >= sizeof(tag))
		return;
	memcpy(tag, value, tag_size);
	tag[tag_size] = 0;
	snprintf(place, sizeof(place), "%s%s", path ? path : "/mnt/", path ? "" : tag);
	for (char *at = place + 1; (at = strchr(at, '/')); *at++ = '/') {
		*at = 0;
		mkdir(place, 0755);
	}
	mkdir(place, 0755);
	if (mount(tag, place, "virtiofs", 0, NULL) < 0)
		dprintf(2, "init: cannot mount %s at %s: %s\n", tag, place, strerror(errno));
}

/* Those of the kernel's own that are left to process 1 when there is an initial file system. */
static void kernel_option(const char *word)
{
	const char *value;

	if (value_of(word, "hostname="))
		hostname = NULL;
	else if ((value = value_of(word, "root=")))
		root = value;
	else if ((value = value_of(word, "rootfstype=")))
		root_type = value;
	else if ((value = value_of(word, "init=")))
		root_init = value;
	else if (!strcmp(word, "ro") || !strcmp(word, "rw"))
		root_read_only = word[1] == 'o';
}

static void option(char *word)
{
	const char *value;

	if ((value = value_of(word, "kvmpv.shell=")))
		shell = !strcmp(value, "off") ? SHELL_OFF :
			!strcmp(value, "once") ? SHELL_ONCE : SHELL_ON;
	else if ((value = value_of(word, "kvmpv.hostname=")))
		hostname = value;
	else if ((value = value_of(word, "kvmpv.run=")))
		run_command = (char *)value;
	else if ((value = value_of(word, "kvmpv.share=")) && share_count < 64)
		shares[share_count++] = value;
	else if ((value = value_of(word, "kvmpv.root="))) {
		root = value;
		root_type = "virtiofs";
	} else if ((value = value_of(word, "kvmpv.net=")))
		no_network = !strcmp(value, "off");
	else if ((value = value_of(word, "kvmpv.end=")))
		end = !strcmp(value, "reboot") ? POWER_REBOOT :
		      !strcmp(value, "halt") ? POWER_HALT : POWER_OFF;
	else
		kernel_option(word);
}

/* Reads the kernel's command line. */
void init_configure(void)
{
	int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
	char *rest = cmdline, *word;
	ssize_t n = fd < 0 ? 0 : read(fd, cmdline, sizeof(cmdline) - 1);

	if (fd >= 0)
		close(fd);
	cmdline[n > 0 ? n : 0] = 0;
	while ((word = next_word(&rest)))
		option(word);
	if (hostname)
		sethostname(hostname, strlen(hostname));
	reboot(RB_DISABLE_CAD);
	if (root && root_type)
		root_switch(root, root_type, root_read_only, root_init);
	for (unsigned int i = 0; i < share_count; i++)
		mount_share(shares[i]);
	if (!no_network)
		network_start();
}

static int on_terminal(const char *file, const char *const *argv)
{
	int fds[3], pid;

	fds[0] = open("/dev/hvc0", O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (fds[0] < 0)
		fds[0] = open("/dev/console", O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (fds[0] < 0)
		return -errno;
	fds[1] = fds[2] = fds[0];
	pid = spawn(file, argv, default_env, run_command ? "/" : "/root", fds, 1);
	close(fds[0]);
	return pid;
}

static int spawn_command(void)
{
	static const char *words[256];
	int count = 0;

	if (strpbrk(run_command, "|&;<>()$`\\\"'*?[#~=%\n")) {
		const char *argv[] = { "/bin/sh", "-c", run_command, NULL };

		return on_terminal(NULL, argv);
	}
	for (char *rest = run_command; count < 255 && (words[count] = next_word(&rest));)
		count++;
	words[count] = NULL;
	return count ? on_terminal(NULL, words) : -EINVAL;
}

/* Starts the shell, or the one command that the machine was booted for. */
void init_start(void)
{
	static const char *const login[] = { "-sh", NULL };

	if (run_command) {
		child = spawn_command();
		if (child < 0)
			power_wanted = end;
	} else if (shell != SHELL_OFF) {
		started = now_ms();
		child = on_terminal("/bin/sh", login);
	}
}

int init_reaped(int pid, int status)
{
	(void)status;
	if (!child || pid != child)
		return 0;
	child = 0;
	if (run_command || shell == SHELL_ONCE)
		power_wanted = end;
	else
		restart_at = now_ms() - started < RESPAWN_MS ? started + RESPAWN_MS : now_ms();
	return 1;
}

int init_timeout(void)
{
	long now;

	if (!restart_at)
		return -1;
	now = now_ms();
	return restart_at > now ? (int)(restart_at - now) : 0;
}

void init_tick(void)
{
	if (!restart_at || now_ms() < restart_at)
		return;
	restart_at = 0;
	init_start();
}

/* Waits until no child is left, or the time is over; returns whether none is. */
static int wait_children(long until)
{
	struct timespec pause = { 0, 10 * 1000 * 1000 };

	for (;;) {
		pid_t pid = waitpid(-1, NULL, WNOHANG);

		if (pid < 0 && errno == ECHILD)
			return 1;
		if (pid > 0)
			continue;
		if (now_ms() >= until)
			return 0;
		nanosleep(&pause, NULL);
	}
}

/* systemd(1), "Signals": halt.target, poweroff.target and reboot.target are started. */
static void ask_systemd(int how)
{
	power_wanted = 0;
	kill(1, SIGRTMIN + (how == POWER_REBOOT ? 5 : how == POWER_HALT ? 3 : 4));
}

/* Ends the machine as busybox init does: everything is told, then killed. */
void power(int how)
{
	if (!is_init) {
		ask_systemd(how);
		return;
	}
	if (waitpid(-1, NULL, WNOHANG) >= 0 || errno != ECHILD) {
		kill(-1, SIGTERM);
		kill(-1, SIGHUP);	/* interactive shells mind nothing else */
		kill(-1, SIGCONT);
		if (!wait_children(now_ms() + TERM_MS)) {
			kill(-1, SIGKILL);
			wait_children(now_ms() + TERM_MS);
		}
	}
	sync();
	reboot(how == POWER_REBOOT ? (int)RB_AUTOBOOT :
	       how == POWER_HALT ? (int)RB_HALT_SYSTEM : (int)RB_POWER_OFF);
	for (;;)	/* halted, or refused: process 1 must not end */
		pause();
}
