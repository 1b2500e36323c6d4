/* SPDX-License-Identifier: MIT */
/*
 * A vhost-user front end that is a network driver, and what sends to its tap.
 *
 *   net_client SOCKETFD send|receive BYTES     until it is killed
 *   net_client INTERFACE flood BYTES           the same
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "net_driver.h"
#include "vhost_user.h"

#define PF_MQ 1
#define F_PROTOCOL (1ULL << 30)
#define MEMORY (64UL << 20)

static int kick;

static void tell(uint32_t request, uint64_t number, int fd)
{
	struct message message = { .number = number };

	send_message(&message, request, 8, fd);
}

static void kick_it(void)
{
	static const uint64_t one = 1;

	if (write(kick, &one, 8) != 8)
		fail("kick");
}

static void start(struct driver *driver)
{
	int memfd = memfd_create("guest", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	uint64_t index = driver->transmit;
	struct message message = { 0 };

	if (memfd < 0 || ftruncate(memfd, MEMORY) ||
	    fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW))
		fail("memfd");
	driver->ring = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, memfd, 0);
	if (driver->ring == MAP_FAILED)
		fail("mmap");
	kick = eventfd(0, 0);
	ask(1);
	ask(15);
	tell(16, PF_MQ, -1);
	send_message(&message, 3, 0, -1);
	tell(2, FEATURES | F_PROTOCOL, -1);
	message.table.count = 1;
	message.table.padding = 0;
	message.table.gpa = message.table.offset = 0;
	message.table.size = MEMORY;
	message.table.user = (uintptr_t)driver->ring;
	send_message(&message, 5, 8 + 32, memfd);
	tell(8, index | (uint64_t)RING << 32, -1);
	tell(10, index, -1);
	memset(&message, 0, sizeof(message));
	message.ring.index = index;
	message.ring.desc = (uintptr_t)driver->ring + DESC_AT;
	message.ring.avail = (uintptr_t)driver->ring + AVAIL_AT;
	message.ring.used = (uintptr_t)driver->ring + USED_AT;
	send_message(&message, 9, 40, -1);
	tell(13, index, eventfd(0, 0));
	tell(12, index, kick);
	tell(18, index | 1ULL << 32, -1);
}

static void flood(const char *interface, uint32_t bytes)
{
	struct sockaddr_ll address = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL) };
	static uint8_t frame[70000];
	struct mmsghdr messages[64];
	struct iovec piece;
	int one = 1, raw = socket(AF_PACKET, SOCK_RAW, 0), i;

	address.sll_ifindex = if_nametoindex(interface);
	if (raw < 0 || bind(raw, (struct sockaddr *)&address, sizeof(address)) ||
	    setsockopt(raw, SOL_PACKET, PACKET_VNET_HDR, &one, sizeof(one)))
		fail(interface);
	setsockopt(raw, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof(one));
	net_frame(frame, bytes);
	memmove(frame + 2, frame, 10);		/* the kernel's header has 10 bytes here */
	piece = (struct iovec){ frame + 2, bytes + 10 };
	for (i = 0; i < 64; i++)
		messages[i].msg_hdr = (struct msghdr){ .msg_iov = &piece, .msg_iovlen = 1 };
	for (;;)
		if (sendmmsg(raw, messages, 64, 0) < 0 && errno != ENOBUFS)
			fail("sendmmsg");
}

int main(int argc, char **argv)
{
	struct driver driver = { .kick = kick_it };

	if (argc != 4)
		return 2;
	driver.bytes = atoi(argv[3]);
	if (!strcmp(argv[2], "flood"))
		flood(argv[1], driver.bytes);
	server = atoi(argv[1]);
	driver.transmit = !strcmp(argv[2], "send");
	start(&driver);
	driver.ring_address = 0;
	net_begin(&driver);
	for (;;)
		net_turn(&driver);
}
