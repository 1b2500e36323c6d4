/* SPDX-License-Identifier: MIT */
/*
 * A network driver that does nothing but send or receive, as fast as it can: the
 * same loop natively in front of a vhost-user backend, and as a bare guest of QEMU.
 * It looks for answers without sleeping and asks for no interrupts.
 */
#ifndef NET_DRIVER_H
#define NET_DRIVER_H

#include <stdint.h>

#define RING 256
#define DESC_AT 0x0000
#define AVAIL_AT 0x2000
#define USED_AT 0x3000
#define DATA_AT 0x10000
#define LARGE_MTU 1448
#define HEADER 12

#define DESC_WRITE 2
#define NET_F_CSUM (1ULL << 0)
#define NET_F_GUEST_CSUM (1ULL << 1)
#define NET_F_GUEST_TSO4 (1ULL << 7)
#define NET_F_HOST_TSO4 (1ULL << 11)
#define NET_F_MRG_RXBUF (1ULL << 15)
#define F_EVENT_IDX (1ULL << 29)
#define F_VERSION_1 (1ULL << 32)
#define FEATURES                                                                               \
	(NET_F_CSUM | NET_F_GUEST_CSUM | NET_F_GUEST_TSO4 | NET_F_HOST_TSO4 | NET_F_MRG_RXBUF | \
	 F_EVENT_IDX | F_VERSION_1)

struct desc { uint64_t address; uint32_t length; uint16_t flags, next; };
struct avail { uint16_t flags, index, ring[RING], used_event; };
struct used { uint16_t flags, index; struct { uint32_t head, length; } ring[RING]; uint16_t avail_event; };

struct driver {
	uint8_t *ring;			/* where the driver sees it */
	uint64_t ring_address;		/* where the device does */
	uint32_t bytes;			/* of a frame, or of a buffer */
	int transmit;
	uint16_t offered, seen;
	uint64_t packets, kicks;
	void (*kick)(void);
};

static struct desc *net_desc(struct driver *driver)
{
	return (struct desc *)(driver->ring + DESC_AT);
}

/* An Ethernet frame with IPv4 and TCP, which asks to be segmented if it is large. */
static void net_frame(uint8_t *at, uint32_t bytes)
{
	static const uint8_t head[] = {
		0x52, 0x4b, 0, 0, 0, 9, 0x52, 0x4b, 0, 0, 0, 1, 8, 0,
		0x45, 0, 0, 0, 0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
		0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 4, 0, 0, 0, 0, 0,
	};
	uint32_t i;

	for (i = 0; i < sizeof(head); i++)
		at[HEADER + i] = head[i];
	at[HEADER + 16] = (bytes - 14) >> 8;
	at[HEADER + 17] = bytes - 14;
	if (bytes > 1514) {
		at[0] = 1;			/* NEEDS_CSUM */
		at[1] = 1;			/* GSO_TCPV4 */
		at[2] = 54;			/* length of all headers */
		at[4] = LARGE_MTU & 0xff;
		at[5] = LARGE_MTU >> 8;
		at[6] = 34;			/* checksum from there on */
		at[8] = 16;			/* and put there */
	}
}

static void net_show(struct driver *driver, uint16_t before)
{
	volatile struct avail *avail = (void *)(driver->ring + AVAIL_AT);
	volatile struct used *used = (void *)(driver->ring + USED_AT);

	__atomic_store_n(&avail->index, driver->offered, __ATOMIC_RELEASE);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if ((uint16_t)(driver->offered - used->avail_event - 1) < (uint16_t)(driver->offered - before)) {
		driver->kicks++;
		driver->kick();
	}
}

static void net_begin(struct driver *driver)
{
	uint32_t stride = (driver->bytes + HEADER + 63) & ~63u;
	volatile struct avail *avail = (void *)(driver->ring + AVAIL_AT);
	uint32_t i;

	for (i = 0; i < RING; i++) {
		net_desc(driver)[i] = (struct desc){
			driver->ring_address + DATA_AT + (uint64_t)i * stride,
			driver->bytes + HEADER,
			driver->transmit ? 0 : DESC_WRITE, 0
		};
		if (driver->transmit)
			net_frame(driver->ring + DATA_AT + (uint64_t)i * stride, driver->bytes);
		avail->ring[i] = i;
	}
	avail->used_event = 0x8000;	/* far away, and moved on before it comes near */
	driver->offered = RING;
	net_show(driver, 0);
}

/* Take what came back, offer it again. */
static void net_turn(struct driver *driver)
{
	volatile struct avail *avail = (void *)(driver->ring + AVAIL_AT);
	volatile struct used *used = (void *)(driver->ring + USED_AT);
	uint16_t index = __atomic_load_n(&used->index, __ATOMIC_ACQUIRE);
	uint16_t before = driver->offered;

	if (index == driver->seen) {
		__builtin_ia32_pause();
		return;
	}
	while (driver->seen != index)
		avail->ring[driver->offered++ % RING] = used->ring[driver->seen++ % RING].head;
	driver->packets += (uint16_t)(driver->offered - before);
	avail->used_event = driver->seen + 0x8000;
	net_show(driver, before);
}

#endif
