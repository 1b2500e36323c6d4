/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * An address for an interface by DHCP (RFC 2131), in a process of its own that
 * sleeps between renewals. Replies are asked to be broadcast, so that a plain
 * socket receives them before there is an address.
 */
#include "agent.h"
#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <net/route.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SERVER_PORT 67
#define CLIENT_PORT 68
#define COOKIE 0x63825363
#define BROADCAST_FLAG 0x8000
#define FIRST_RETRY_MS 50
#define LAST_RETRY_MS 16000
#define SHORTEST_LEASE_S 60
#define DOMAIN_CHARACTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-"

enum { DISCOVER = 1, OFFER, REQUEST, DECLINE, ACK, NAK };
enum {
	O_PAD = 0, O_MASK = 1, O_ROUTER = 3, O_DNS = 6, O_DOMAIN = 15, O_ADDRESS = 50,
	O_LEASE = 51, O_TYPE = 53, O_SERVER = 54, O_LIST = 55, O_END = 255,
};

struct packet {
	uint8_t op, hardware, hardware_size, hops;
	uint32_t xid;
	uint16_t secs, flags;
	uint32_t mine, yours, next, relay;
	uint8_t chaddr[16];
	uint8_t unused[192];
	uint32_t cookie;
	uint8_t options[312];
} __attribute__((packed));

/* All addresses in network order. */
static struct {
	const char *name;
	int socket, index;
	uint8_t mac[6];
	uint32_t xid;
	uint32_t address, mask, router, server, dns[3];
	uint32_t lease_s;
	char domain[128];
} me;

static uint8_t *put(uint8_t *at, uint8_t option, const void *value, uint8_t size)
{
	*at++ = option;
	*at++ = size;
	memcpy(at, value, size);
	return at + size;
}

static void send_message(uint8_t type, int renew)
{
	static const uint8_t wanted[] = { O_MASK, O_ROUTER, O_DNS, O_DOMAIN, O_LEASE };
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(SERVER_PORT),
				  .sin_addr.s_addr = INADDR_BROADCAST };
	struct packet out = { .op = 1, .hardware = 1, .hardware_size = 6, .xid = me.xid,
			      .flags = htons(BROADCAST_FLAG), .cookie = htonl(COOKIE) };
	uint8_t *at = out.options;

	memcpy(out.chaddr, me.mac, sizeof(me.mac));
	at = put(at, O_TYPE, &type, 1);
	if (renew) {
		out.mine = me.address;
	} else if (type == REQUEST) {
		at = put(at, O_ADDRESS, &me.address, 4);
		at = put(at, O_SERVER, &me.server, 4);
	}
	at = put(at, O_LIST, wanted, sizeof(wanted));
	*at = O_END;
	sendto(me.socket, &out, sizeof(out), 0, (struct sockaddr *)&to, sizeof(to));
}

static void take_option(uint8_t option, const uint8_t *value, uint8_t size)
{
	if (option == O_DOMAIN) {
		size_t n = 0;

		while (n < size && n < sizeof(me.domain) - 1 && value[n] &&
		       strchr(DOMAIN_CHARACTERS, value[n]))
			n++;
		memcpy(me.domain, value, n);
		me.domain[n] = 0;
	} else if (option == O_DNS) {
		memcpy(me.dns, value, size < sizeof(me.dns) ? size & ~3u : sizeof(me.dns));
	} else if (size >= 4) {
		uint32_t word;

		memcpy(&word, value, 4);
		if (option == O_MASK)
			me.mask = word;
		else if (option == O_ROUTER)
			me.router = word;
		else if (option == O_SERVER)
			me.server = word;
		else if (option == O_LEASE)
			me.lease_s = ntohl(word);
	}
}

/* Returns the message's type, 0 if it is none for us; keeps what it gives if it is wanted. */
static int take_message(const struct packet *in, ssize_t size, int wanted)
{
	const uint8_t *at = in->options, *end = (const uint8_t *)in + size;
	int type = 0;

	if (size <= (ssize_t)offsetof(struct packet, options) || in->op != 2 ||
	    in->xid != me.xid || in->cookie != htonl(COOKIE) ||
	    memcmp(in->chaddr, me.mac, sizeof(me.mac)))
		return 0;
	for (int keep = 0; keep < 2; keep++) {
		for (at = in->options; at < end && *at != O_END;) {
			if (*at == O_PAD) {
				at++;
				continue;
			}
			if (at + 2 > end || at + 2 + at[1] > end)
				break;
			if (keep)
				take_option(at[0], at + 2, at[1]);
			else if (at[0] == O_TYPE && at[1] == 1)
				type = at[2];
			at += 2 + at[1];
		}
		if (type != wanted)
			return type;
	}
	me.address = in->yours;
	return type;
}

/* Sends and waits: returns the type of the reply, 0 if none came in time. */
static int exchange(uint8_t type, int renew, int timeout_ms)
{
	long until = now_ms() + timeout_ms, left;
	int wanted = type == DISCOVER ? OFFER : ACK, got;
	struct pollfd slot = { me.socket, POLLIN, 0 };
	static struct packet in;

	send_message(type, renew);
	while ((left = until - now_ms()) > 0 && poll(&slot, 1, (int)left) > 0) {
		got = take_message(&in, recv(me.socket, &in, sizeof(in), 0), wanted);
		if (got == wanted || got == NAK)
			return got;
	}
	return 0;
}

static void set_interface(unsigned long request, uint32_t address)
{
	struct ifreq ifr = { 0 };
	struct sockaddr_in *in = (struct sockaddr_in *)&ifr.ifr_addr;

	strncpy(ifr.ifr_name, me.name, IFNAMSIZ - 1);
	in->sin_family = AF_INET;
	in->sin_addr.s_addr = address;
	ioctl(me.socket, request, &ifr);
}

static void set_route(void)
{
	struct rtentry route = { .rt_flags = RTF_UP | RTF_GATEWAY, .rt_dev = (char *)me.name };
	struct sockaddr_in *gateway = (struct sockaddr_in *)&route.rt_gateway;

	route.rt_dst.sa_family = route.rt_genmask.sa_family = gateway->sin_family = AF_INET;
	gateway->sin_addr.s_addr = me.router;
	route.rt_metric = (short)(me.index + 1);	/* the first interface wins */
	ioctl(me.socket, SIOCADDRT, &route);
}

static void use_lease(void)
{
	set_interface(SIOCSIFADDR, me.address);
	if (me.mask) {
		set_interface(SIOCSIFNETMASK, me.mask);
		set_interface(SIOCSIFBRDADDR, me.address | ~me.mask);
	}
	if (me.router)
		set_route();
	network_resolver(me.domain, me.dns, sizeof(me.dns) / sizeof(me.dns[0]));
}

static void acquire(void)
{
	int wait_ms = FIRST_RETRY_MS;

	getrandom(&me.xid, sizeof(me.xid), GRND_NONBLOCK);
	for (;;) {	/* with one xid: a late reply is one too */
		me.mask = me.router = me.lease_s = 0;
		if (exchange(DISCOVER, 0, wait_ms) == OFFER &&
		    exchange(REQUEST, 0, wait_ms) == ACK)
			return;
		if (wait_ms < LAST_RETRY_MS)
			wait_ms *= 2;
	}
}

/* Sleeps and renews; returns when the address must be given up. */
static void hold(void)
{
	uint32_t had = me.address;
	long left_s = me.lease_s < SHORTEST_LEASE_S ? SHORTEST_LEASE_S : me.lease_s;
	int got;

	while (left_s >= SHORTEST_LEASE_S / 2) {
		struct timespec pause = { left_s / 2, 0 };

		nanosleep(&pause, NULL);
		got = exchange(REQUEST, 1, LAST_RETRY_MS);
		if (got == NAK)
			break;
		if (got == ACK)
			left_s = me.lease_s < SHORTEST_LEASE_S ? SHORTEST_LEASE_S : me.lease_s;
		else
			left_s /= 2;
		if (me.address != had)
			break;
	}
	set_interface(SIOCSIFADDR, 0);
}

static void run(int ready)
{
	int yes = 1;
	struct sockaddr_in any = { .sin_family = AF_INET, .sin_port = htons(CLIENT_PORT) };

	me.socket = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	setsockopt(me.socket, SOL_SOCKET, SO_BROADCAST, &yes, sizeof(yes));
	setsockopt(me.socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
	setsockopt(me.socket, SOL_SOCKET, SO_BINDTODEVICE, me.name, strlen(me.name) + 1);
	if (bind(me.socket, (struct sockaddr *)&any, sizeof(any)) < 0)
		return;
	for (;;) {
		acquire();
		use_lease();
		close(ready);
		ready = -1;
		hold();
	}
}

/* Starts the process; ready's other end reads its end when there is an address. */
int dhcp_start(const char *name, int index, const uint8_t mac[6], int ready)
{
	pid_t pid = fork();

	if (pid)
		return pid < 0 ? -errno : pid;
	setsid();
	me.name = name;
	me.index = index;
	memcpy(me.mac, mac, sizeof(me.mac));
	run(ready);
	_exit(1);
}
