/* SPDX-License-Identifier: MIT */
/* The front end's messages of vhost-user, as far as the benchmarks' clients send them. Needs _GNU_SOURCE. */
#ifndef VHOST_USER_H
#define VHOST_USER_H

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

struct message {
	uint32_t request, flags, size;
	union {
		uint64_t number;
		struct { uint32_t index, value; } state;
		struct { uint32_t index, flags; uint64_t desc, used, avail, log; } ring;
		struct { uint32_t count, padding; uint64_t gpa, size, user, offset; } table;
	};
} __attribute__((packed));

static int server;

static void fail(const char *what)
{
	fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what, strerror(errno));
	exit(1);
}

static void send_message(struct message *message, uint32_t request, uint32_t size, int fd)
{
	char space[CMSG_SPACE(sizeof(int))];
	struct iovec piece = { message, 12 + size };
	struct msghdr header = { .msg_iov = &piece, .msg_iovlen = 1 };

	message->request = request;
	message->flags = 1;
	message->size = size;
	if (fd >= 0) {
		struct cmsghdr *rights;

		memset(space, 0, sizeof(space));
		header.msg_control = space;
		header.msg_controllen = sizeof(space);
		rights = CMSG_FIRSTHDR(&header);
		rights->cmsg_level = SOL_SOCKET;
		rights->cmsg_type = SCM_RIGHTS;
		rights->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(rights), &fd, sizeof(int));
	}
	if (sendmsg(server, &header, 0) != (ssize_t)piece.iov_len)
		fail("sendmsg");
}

static void receive_message(struct message *message)
{
	if (recv(server, message, 12, MSG_WAITALL) != 12 || message->size > sizeof(*message) - 12 ||
	    recv(server, &message->number, message->size, MSG_WAITALL) != (ssize_t)message->size)
		fail("no answer");
}

static uint64_t ask(uint32_t request)
{
	struct message message = { 0 };

	send_message(&message, request, 0, -1);
	receive_message(&message);
	return message.number;
}

#endif
