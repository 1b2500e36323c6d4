/* A small driver of virtio devices over the kvmpv transport: one queue of a disk at a time. */
#ifndef VIRTIO_H
#define VIRTIO_H

#include "guest.h"

#define STATUS_ACKNOWLEDGE	1
#define STATUS_DRIVER		2
#define STATUS_DRIVER_OK	4
#define STATUS_FEATURES_OK	8
#define STATUS_NEEDS_RESET	64

#define FEATURE_RO		(1ul << 5)
#define FEATURE_FLUSH		(1ul << 9)
#define FEATURE_INDIRECT	(1ul << 28)
#define FEATURE_VERSION_1	(1ul << 32)
#define FEATURE_ACCESS_PLATFORM	(1ul << 33)
#define FEATURES_NEEDED		(FEATURE_VERSION_1 | FEATURE_ACCESS_PLATFORM)

#define TYPE_BLOCK		2

#define DESC_NEXT		1
#define DESC_WRITE		2
#define DESC_INDIRECT		4

#define BLOCK_IN		0
#define BLOCK_OUT		1
#define BLOCK_FLUSH		4

#define RING_SIZE		64
#define SLOTS			16	/* requests at once; three descriptors each */
#define SLOT_BYTES		4096

struct descriptor {
	u64 address;
	u32 length;
	u16 flags;
	u16 next;
};

struct ring {
	struct descriptor descriptors[RING_SIZE];
	struct {
		volatile u16 flags, index, ring[RING_SIZE], used_event;
	} available;
	u16 pad;
	struct {
		volatile u16 flags, index;
		struct {
			volatile u32 id, length;
		} ring[RING_SIZE];
		volatile u16 avail_event;
	} used;
};

struct request {
	u32 type, reserved;
	u64 sector;
	volatile u8 status;
};

extern struct kvmpv_virtio_page device_page;
extern struct ring ring;
extern struct request requests[SLOTS];
extern u8 data[SLOTS][SLOT_BYTES];

#define QUEUE_VECTOR	0x70
#define CHANGE_VECTOR	0x71

long device_open(u32 number);
long device_find(u32 type);			/* opens the first of this type; its number or -1 */
long device_status(u32 status, u64 features);
long device_queue(u32 index, u32 size, u32 channel);	/* the one ring, in that queue */
long device_begin(u64 features);		/* from reset to DRIVER_OK with queue 0; 0 or the step */
void device_end(void);				/* reset, and everything given back */

void fill(u32 slot, u32 type, u64 sector, u32 bytes);
void submit(u32 head);				/* makes it available; kick() tells */
void kick(u32 index);
long wait_used(u16 until);			/* 0, or -1 */

static inline void out32(u32 port, u32 value)
{
	__asm__ volatile("outl %%eax, %%dx" : : "a"(value), "d"(port) : "memory");
}

static inline void out8(u32 port, u8 value)
{
	__asm__ volatile("outb %%al, %%dx" : : "a"(value), "d"(port) : "memory");
}


#endif /* VIRTIO_H */
