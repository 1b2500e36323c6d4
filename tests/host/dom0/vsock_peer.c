/* SPDX-License-Identifier: MIT */
/*
 * The guest's side of the vsock tests, linked statically.
 *
 * vsock_peer listen PORT        answer one connection with what it sends, to its end
 * vsock_peer send PORT BYTES    connect to the host, send that much, say what came back of it
 */
#include <linux/vm_sockets.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static char buffer[65536];

static int fail(const char *what)
{
	perror(what);
	return 1;
}

static int listen_at(struct sockaddr_vm *address)
{
	int listener = socket(AF_VSOCK, SOCK_STREAM, 0), peer;
	ssize_t count, done, sent;

	address->svm_cid = VMADDR_CID_ANY;
	if (bind(listener, (struct sockaddr *)address, sizeof(*address)) || listen(listener, 1))
		return fail("listen");
	puts("listening");
	fflush(stdout);
	peer = accept(listener, NULL, NULL);
	while ((count = read(peer, buffer, sizeof(buffer))) > 0)
		for (done = 0; done < count; done += sent)
			if ((sent = write(peer, buffer + done, (size_t)(count - done))) < 0)
				return fail("write");
	return count ? fail("read") : 0;
}

/* Byte n of the stream is n modulo 251. */
static int send_to(struct sockaddr_vm *address, long bytes)
{
	int peer = socket(AF_VSOCK, SOCK_STREAM, 0);
	long sent = 0, came = 0;

	address->svm_cid = VMADDR_CID_HOST;
	if (connect(peer, (struct sockaddr *)address, sizeof(*address)))
		return fail("connect");
	while (sent < bytes) {
		long count = bytes - sent < (long)sizeof(buffer) ? bytes - sent : (long)sizeof(buffer);

		for (long i = 0; i < count; i++)
			buffer[i] = (char)((sent + i) % 251);
		count = write(peer, buffer, (size_t)count);
		if (count < 0)
			return fail("write");
		sent += count;
	}
	shutdown(peer, SHUT_WR);
	for (ssize_t count; (count = read(peer, buffer, sizeof(buffer))) > 0; came += count)
		for (ssize_t i = 0; i < count; i++)
			if (buffer[i] != (char)((came + i) % 251))
				return fail("wrong data");
	printf("%ld came back\n", came);
	return 0;
}

int main(int argc, char **argv)
{
	struct sockaddr_vm address = { .svm_family = AF_VSOCK };

	if (argc < 3)
		return 2;
	address.svm_port = (unsigned int)atol(argv[2]);
	return strcmp(argv[1], "listen") ? send_to(&address, argc > 3 ? atol(argv[3]) : 0)
					 : listen_at(&address);
}
