/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Another root file system than the initial one: a folder of the host, mostly.
 * The agent goes on as process 1 in it, so that nothing has to be installed
 * there for the host to run commands; or it makes room for an init of its own.
 */
#include "agent.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#define NEW "/newroot"

static int failed(const char *what)
{
	dprintf(2, "init: %s: %s\n", what, strerror(errno));
	return -1;
}

/* What init_mount has mounted goes along, where there is a place for it. */
static void move_mounts(void)
{
	static const char *const all[] = { "/dev", "/proc", "/sys", "/run", "/tmp" };
	char to[32];

	for (unsigned int i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		snprintf(to, sizeof(to), NEW "%s", all[i]);
		mkdir(to, 0755);
		if (mount(all[i], to, NULL, MS_MOVE, NULL) < 0)
			failed(to);
	}
}

/* The folder is the host's: its resolv.conf is covered, never written. */
static void cover_resolver(void)
{
	int fd = open(NETWORK_RESOLVER, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);

	if (fd < 0)
		return;
	close(fd);
	mount(NETWORK_RESOLVER, "/etc/resolv.conf", NULL, MS_BIND, NULL);
}

/* Makes what root= and rootfstype= name the root; runs an init in it if one is given. */
int root_switch(const char *source, const char *type, int read_only, const char *init)
{
	const char *const argv[] = { init, NULL };

	mkdir(NEW, 0755);
	if (mount(source, NEW, type, read_only ? MS_RDONLY : 0, NULL) < 0)
		return failed(source);
	unlink("/bin/busybox");		/* memory that nobody can reach any more */
	move_mounts();
	if (chdir(NEW) < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 ||
	    chdir("/") < 0)
		return failed("cannot change the root");
	if (!init) {
		cover_resolver();
		return 0;
	}
	execve(init, (char *const *)argv, (char *const *)default_env);
	return failed(init);
}
