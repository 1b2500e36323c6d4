/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Live folders: file systems that somebody else changes too, cached here as if
 * nobody did. The peer tells when names and attributes that are cached must be
 * looked up again; what commands have written is sent off when they end.
 */
#include "agent.h"
#include <fcntl.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

#define MAX_LIVE 16

static const char *paths[MAX_LIVE];
static int fds[MAX_LIVE], count;

void live_add(const char *path)
{
	if (count == MAX_LIVE)
		return;
	fds[count] = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fds[count] >= 0)
		paths[count++] = path;
}

static int is_live(const char *name)
{
	for (int i = 0; i < count; i++)
		if (!strncmp(name, paths[i], strlen(paths[i])))
			return 1;
	return 0;
}

/*
 * A remount drops every name that is not in use, and keeps the files' pages;
 * those of the named files go too. Returns -1 if the names are not well formed.
 */
int live_refresh(const uint8_t *names, size_t length)
{
	const char *name = (const char *)names, *end = name + length;

	if (length && end[-1])
		return -1;
	for (int i = 0; i < count; i++)
		mount(NULL, paths[i], NULL, MS_REMOUNT, NULL);
	for (; name < end; name += strlen(name) + 1) {
		int fd = is_live(name) ? open(name, O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC) : -1;

		if (fd < 0)
			continue;
		posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
		close(fd);
	}
	return 0;
}

void live_sync(void)
{
	for (int i = 0; i < count; i++)
		syncfs(fds[i]);
}
