/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The small guest's networks: every Ethernet interface that is there at the
 * start is brought up and gets an address by DHCP. IPv6 the kernel does itself.
 */
#include "agent.h"
#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_INTERFACES 16
#define PATIENCE_MS 3000

static int control;

static int bring_up(struct ifreq *ifr)
{
	if (ioctl(control, SIOCGIFFLAGS, ifr) < 0)
		return -1;
	ifr->ifr_flags |= IFF_UP;
	return ioctl(control, SIOCSIFFLAGS, ifr);
}

/* Brings an interface up; returns a descriptor that ends with its wait for an address, or -1. */
static int start_interface(const char *name)
{
	struct ifreq ifr = { 0 };
	uint8_t mac[6];
	int ends[2], kind, pid;

	strncpy(ifr.ifr_name, name, IFNAMSIZ - 1);
	if (ioctl(control, SIOCGIFHWADDR, &ifr) < 0)
		return -1;
	kind = ifr.ifr_hwaddr.sa_family;
	memcpy(mac, ifr.ifr_hwaddr.sa_data, sizeof(mac));
	if (bring_up(&ifr) < 0 || kind != ARPHRD_ETHER)
		return -1;
	if (ioctl(control, SIOCGIFINDEX, &ifr) < 0 || pipe2(ends, O_CLOEXEC) < 0)
		return -1;
	pid = dhcp_start(name, ifr.ifr_ifindex, mac, ends[1]);
	close(ends[1]);
	if (pid > 0)
		return ends[0];
	close(ends[0]);
	return -1;
}

/* Waits a while for addresses, for what is run next may want them. */
static void wait_ready(struct pollfd *slots, nfds_t count)
{
	long until = now_ms() + PATIENCE_MS, left;
	nfds_t open = count;

	while (open && (left = until - now_ms()) > 0 && poll(slots, count, (int)left) > 0) {
		for (nfds_t i = 0; i < count; i++) {
			if (slots[i].fd >= 0 && slots[i].revents) {
				close(slots[i].fd);
				slots[i].fd = -1;
				open--;
			}
		}
	}
	for (nfds_t i = 0; i < count; i++)
		if (slots[i].fd >= 0)
			close(slots[i].fd);
}

void network_start(void)
{
	struct pollfd slots[MAX_INTERFACES];
	DIR *all = opendir("/sys/class/net");
	struct dirent *entry;
	nfds_t count = 0;

	control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	while (all && count < MAX_INTERFACES && (entry = readdir(all))) {
		if (entry->d_name[0] == '.')
			continue;
		slots[count] = (struct pollfd){ start_interface(entry->d_name), POLLIN, 0 };
		count += slots[count].fd >= 0;
	}
	if (all)
		closedir(all);
	close(control);
	wait_ready(slots, count);
}

/* Names what is new to the resolver; several interfaces' processes come here. */
void network_resolver(const char *domain, const uint32_t *servers, int count)
{
	int fd = open(NETWORK_RESOLVER, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
	char known[2048] = "", line[160];
	struct in_addr address;

	if (fd < 0)
		return;
	if (read(fd, known, sizeof(known) - 1) < 0)
		known[0] = 0;
	if (domain[0] && !strstr(known, domain) && dprintf(fd, "search %s\n", domain) < 0)
		count = 0;
	for (int i = 0; i < count && servers[i]; i++) {
		address.s_addr = servers[i];
		snprintf(line, sizeof(line), "nameserver %s\n", inet_ntoa(address));
		if (!strstr(known, line) && write(fd, line, strlen(line)) < 0)
			break;
	}
	close(fd);
}
