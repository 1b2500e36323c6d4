/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Live folders: file systems that somebody else changes too, cached here as if
 * nobody did. The peer tells when names and attributes that are cached must be
 * looked up again; what commands have written is sent off when they end.
 */
#include "agent.h"
#include <fcntl.h>
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

/* A remount drops every name that is not in use, and keeps the files' pages. */
void live_refresh(void)
{
	for (int i = 0; i < count; i++)
		mount(NULL, paths[i], NULL, MS_REMOUNT, NULL);
}

void live_sync(void)
{
	for (int i = 0; i < count; i++)
		syncfs(fds[i]);
}
