/* Virtio devices by the book: the transport's calls, and a disk written, read and flushed. */
#include "virtio.h"

struct kvmpv_virtio_page device_page __attribute__((aligned(4096)));
struct ring ring __attribute__((aligned(4096)));
struct request requests[SLOTS];
u8 data[SLOTS][SLOT_BYTES] __attribute__((aligned(4096)));

static u32 device;
static long queue_channel = -1, change_channel = -1;

long device_open(u32 number)
{
	device = number;
	device_page.version = KVMPV_VIRTIO_PAGE_VERSION;
	device_page.size = sizeof(device_page);
	return hypercall(KVMPV_HC_VIRTIO_OPEN, number, address_of(&device_page), 0);
}

long device_find(u32 type)
{
	u64 there = (u64)hypercall(KVMPV_HC_VIRTIO_DEVICES, 0, 0, 0);
	u32 number;

	for (number = 0; number < KVMPV_MAX_DEVICES; number++) {
		if (!(there >> number & 1) || device_open(number))
			continue;
		if (device_page.type == type)
			return number;
		hypercall(KVMPV_HC_VIRTIO_CLOSE, number, 0, 0);
	}
	return -1;
}

long device_status(u32 status, u64 features)
{
	return hypercall(KVMPV_HC_VIRTIO_STATUS, device, status, features);
}

long device_queue(u32 index, u32 size, u32 channel)
{
	struct kvmpv_virtio_queue queue = {
		.version = KVMPV_VIRTIO_QUEUE_VERSION,
		.size = sizeof(queue),
		.index = (u16)index,
		.ring_size = (u16)size,
		.channel = channel,
		.descriptors = address_of(ring.descriptors),
		.driver = address_of(&ring.available),
		.device = address_of(&ring.used),
	};

	return hypercall(KVMPV_HC_VIRTIO_QUEUE, device, address_of(&queue), 0);
}

static void make_channel(long *channel, u32 vector)
{
	if (*channel >= 0)
		return;
	*channel = hypercall(KVMPV_HC_EVTCHN_ALLOC, 0, 0, 0);
	bind_channel((u32)*channel, 0, vector);
}

long device_begin(u64 features)
{
	u32 status = STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK;

	apic_init();
	make_channel(&queue_channel, QUEUE_VECTOR);
	make_channel(&change_channel, CHANGE_VECTOR);
	ring.available.index = ring.used.index = 0;
	ring.available.flags = 0;
	if (hypercall(KVMPV_HC_VIRTIO_BIND, device, (u64)change_channel, 0))
		return 1;
	if (device_status(status, features) || !(device_page.status & STATUS_FEATURES_OK))
		return 2;
	if (device_queue(0, RING_SIZE, (u32)queue_channel))
		return 3;
	if (device_status(status | STATUS_DRIVER_OK, 0))
		return 4;
	return 0;
}

static void close_channel(long *channel)
{
	hypercall(KVMPV_HC_EVTCHN_CLOSE, (u64)*channel, 0, 0);
	*channel = -1;
}

void device_end(void)
{
	device_status(0, 0);
	hypercall(KVMPV_HC_VIRTIO_CLOSE, device, 0, 0);
	close_channel(&queue_channel);
	close_channel(&change_channel);
}

static void describe(u32 index, const volatile void *buffer, u32 length, u16 flags)
{
	ring.descriptors[index].address = address_of(buffer);
	ring.descriptors[index].length = length;
	ring.descriptors[index].flags = flags;
	ring.descriptors[index].next = (u16)(index + 1);
}

void fill(u32 slot, u32 type, u64 sector, u32 bytes)
{
	u32 first = 3 * slot;

	requests[slot].type = type;
	requests[slot].sector = sector;
	requests[slot].status = 0xff;
	describe(first, &requests[slot], 16, DESC_NEXT);
	if (type == BLOCK_FLUSH) {
		ring.descriptors[first].next = (u16)(first + 2);
	} else {
		describe(first + 1, data[slot], bytes,
			 type == BLOCK_IN ? DESC_NEXT | DESC_WRITE : DESC_NEXT);
	}
	describe(first + 2, &requests[slot].status, 1, DESC_WRITE);
}

void submit(u32 head)
{
	u16 index = ring.available.index;

	ring.available.ring[index % RING_SIZE] = (u16)head;
	__asm__ volatile("" : : : "memory");
	ring.available.index = (u16)(index + 1);
}

/* Always, whatever the device says of it: no fence is needed then. */
void kick(u32 index)
{
	out32(device_page.doorbell, index);
}

long wait_used(u16 until)
{
	u32 seen;

	do {
		seen = interrupts_seen[QUEUE_VECTOR];
		if (ring.used.index == until)
			return 0;
	} while (!wait_for(&interrupts_seen[QUEUE_VECTOR], seen + 1));
	return -1;
}

/* ---- commands ---- */

/* The calls with arguments that make no sense, and a device's life. With no device, what is left. */
static void check_absent(void)
{
	check("virtio-open-absent", device_open(KVMPV_MAX_DEVICES), -KVMPV_ENOENT);
	check("virtio-open-far", hypercall(KVMPV_HC_VIRTIO_OPEN, ~0ul, 0, 0), -KVMPV_ENOENT);
	device = KVMPV_MAX_DEVICES;
	check("virtio-status-absent", device_status(1, 0), -KVMPV_ENOENT);
	check("virtio-queue-absent", device_queue(0, 1, 0), -KVMPV_ENOENT);
	check("virtio-bind-absent", hypercall(KVMPV_HC_VIRTIO_BIND, device, 0, 0), -KVMPV_ENOENT);
	check("virtio-close-absent", hypercall(KVMPV_HC_VIRTIO_CLOSE, device, 0, 0), -KVMPV_ENOENT);
}

static void check_open(u32 number)
{
	u64 page = address_of(&device_page);

	check("virtio-not-open", device_status(1, 0), -KVMPV_ENOENT);
	check("virtio-open-unaligned", hypercall(KVMPV_HC_VIRTIO_OPEN, number, page + 8, 0),
	      -KVMPV_EINVAL);
	check("virtio-open-efault", hypercall(KVMPV_HC_VIRTIO_OPEN, number, 0xd0000000, 0),
	      -KVMPV_EFAULT);
	device_page.version = 9;
	check("virtio-open-version", hypercall(KVMPV_HC_VIRTIO_OPEN, number, page, 0),
	      -KVMPV_EINVAL);
	check("virtio-open", device_open(number), 0);
	check("virtio-open-twice", device_open(number), -KVMPV_EBUSY);
	check("virtio-offers-needed", (device_page.features & FEATURES_NEEDED) == FEATURES_NEEDED,
	      1);
	check("virtio-has-a-queue", device_page.queues > 0 && device_page.ring_max[0] > 0, 1);
	check("virtio-generation-even", device_page.generation & 1, 0);
	check("virtio-status-0", device_page.status, 0);
}

static void check_set_up(void)
{
	u32 status = STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK;

	check("virtio-queue-early", device_queue(0, RING_SIZE, KVMPV_NO_CHANNEL), -KVMPV_EINVAL);
	check("virtio-unknown-status", device_status(0x10, 0), -KVMPV_EINVAL);
	check("virtio-features-missing", device_status(status, FEATURE_VERSION_1), 0);
	check("virtio-features-refused", device_page.status & STATUS_FEATURES_OK, 0);
	check("virtio-features-surplus", device_status(status, ~0ul), 0);
	check("virtio-features-refused", device_page.status & STATUS_FEATURES_OK, 0);
	check("virtio-features", device_status(status, FEATURES_NEEDED), 0);
	check("virtio-features-ok", device_page.status, status);
	check("virtio-queue-absent", device_queue(KVMPV_MAX_QUEUES, RING_SIZE, KVMPV_NO_CHANNEL),
	      -KVMPV_ENOENT);
	check("virtio-queue-channel", device_queue(0, RING_SIZE, 1000), -KVMPV_ENOENT);
	check("virtio-queue-odd", device_queue(0, RING_SIZE - 1, KVMPV_NO_CHANNEL), -KVMPV_EINVAL);
	check("virtio-queue-large", device_queue(0, 32768, KVMPV_NO_CHANNEL), -KVMPV_EINVAL);
	check("virtio-queue", device_queue(0, RING_SIZE, KVMPV_NO_CHANNEL), 0);
	check("virtio-queue-twice", device_queue(0, RING_SIZE, KVMPV_NO_CHANNEL), -KVMPV_EBUSY);
	check("virtio-queue-stop", device_queue(0, 0, KVMPV_NO_CHANNEL), 0);
	check("virtio-queue-again", device_queue(0, RING_SIZE, KVMPV_NO_CHANNEL), 0);
	check("virtio-config-far", hypercall(KVMPV_HC_VIRTIO_CONFIG, device, 1 << 20, 0),
	      -KVMPV_EINVAL);
	check("virtio-reset", device_status(0, 0), 0);
	check("virtio-status-after-reset", device_page.status, 0);
	check("virtio-queue-after-reset", device_queue(0, RING_SIZE, KVMPV_NO_CHANNEL),
	      -KVMPV_EINVAL);
}

void command_virtio(void)
{
	u64 there = (u64)hypercall(KVMPV_HC_VIRTIO_DEVICES, 0, 0, 0);
	u32 number, count = 0;

	check_absent();
	for (number = 0; number < KVMPV_MAX_DEVICES; number++) {
		if (!(there >> number & 1))
			continue;
		device = number;
		check_open(number);
		check_set_up();
		device_end();
		check("virtio-closed", device_status(1, 0), -KVMPV_ENOENT);
		say("device %d type %d queues %d features %x", (u64)number, (u64)device_page.type,
		    (u64)device_page.queues, device_page.features);
		count++;
	}
	say("virtio %d devices", (u64)count);
}

/* One word in each 512 bytes, so that a slow processor gets through. */
static u64 pattern(u64 sector)
{
	return 0x6b766d7076000000 + sector;
}

static void mark(u32 slot, u64 sector, u32 bytes)
{
	u32 at;

	for (at = 0; at < bytes; at += 512)
		*(u64 *)(data[slot] + at) = pattern(sector + at / 512);
}

static u32 wrong(u32 slot, u64 sector, u32 bytes)
{
	u32 at, count = 0;

	for (at = 0; at < bytes; at += 512)
		count += *(u64 *)(data[slot] + at) != pattern(sector + at / 512);
	return count;
}

/* count requests, depth at a time, over span sectors; returns how many went wrong. */
static u32 many(u32 type, u32 count, u32 depth, u32 bytes, u64 span)
{
	u32 done, slot, bad = 0, step = bytes / 512;
	u64 sector = 0;

	for (done = 0; done < count; done += depth) {
		u16 until = ring.used.index;
		u64 first = sector;

		for (slot = 0; slot < depth; slot++, sector += step) {
			if (sector + step > span)
				first = sector = 0;
			if (type == BLOCK_OUT)
				mark(slot, sector, bytes);
			fill(slot, type, sector, bytes);
			submit(3 * slot);
		}
		kick(0);
		if (wait_used((u16)(until + depth)))
			return count;
		for (slot = 0; slot < depth; slot++) {
			bad += requests[slot].status != 0;
			if (type == BLOCK_IN && first + slot * step < span && sector > slot * step)
				bad += wrong(slot, requests[slot].sector, bytes);
		}
	}
	return bad;
}

static int told_to_stop(void)
{
	u8 byte;

	return hypercall(KVMPV_HC_PORT_READ, KVMPV_PORT_EXEC, address_of(&byte), 1) == 1;
}

static void check_end_of_disk(u64 span)
{
	fill(0, BLOCK_IN, span, 512);
	submit(0);
	kick(0);
	check("disk-end-answered", wait_used(ring.available.index), 0);
	check("disk-end-refused", requests[0].status, 1);
}

/*
 * A disk: n=COUNT requests of size=BYTES, depth=AT ONCE, written, flushed and read back; with
 * endless=1 again and again, until a byte comes by the exec port.
 */
void command_disk(void)
{
	u32 count = (u32)option("n", 64), depth = (u32)option("depth", 8);
	u32 bytes = (u32)option("size", 512), unwritten = 0, unflushed = 0, unread = 0;
	u64 span, features;

	check("disk-found", device_find(TYPE_BLOCK) >= 0, 1);
	span = *(const u64 *)device_page.config;
	features = device_page.features & (FEATURES_NEEDED | FEATURE_FLUSH | FEATURE_RO);
	check("disk-begins", device_begin(features), 0);
	say("disk sectors %d", span);
	if (device_page.features & FEATURE_RO) {
		check("disk-read-only", many(BLOCK_OUT, 1, 1, bytes, span), 1);
	} else {
		do {
			unwritten += many(BLOCK_OUT, count, depth, bytes, span);
			if (features & FEATURE_FLUSH)
				unflushed += many(BLOCK_FLUSH, 1, 1, 0, span);
			unread += many(BLOCK_IN, count, depth, bytes, span);
		} while (option("endless", 0) && !told_to_stop());
		check("disk-written", unwritten, 0);
		check("disk-flushed", unflushed, 0);
		check("disk-read-back", unread, 0);
	}
	check_end_of_disk(span);
	device_end();
}

/* Shows the page, and whether what it waits for has come: until sectors, a reset wanted, removed. */
static int has_come(u64 until)
{
	u64 sectors = *(volatile u64 *)device_page.config;
	u32 status = device_page.status, removed = device_page.removed;

	say("change status %x removed %d generation %d sectors %d", (u64)status, (u64)removed,
	    (u64)device_page.generation, sectors);
	return removed || status & STATUS_NEEDS_RESET || sectors == until;
}

/*
 * What happens to the first disk: until it has until=SECTORS, is removed, or wants a reset, which it
 * gets. request=1: with a request under way. leave=1: leaves it so.
 */
void command_watchdisk(void)
{
	u64 until = option("until", 0);
	u32 seen;

	check("watch-found", device_find(TYPE_BLOCK) >= 0, 1);
	check("watch-begins", device_begin(FEATURES_NEEDED), 0);
	if (option("request", 0)) {
		fill(0, BLOCK_IN, 0, 512);
		submit(0);
		kick(0);
	}
	say("watching");
	if (option("leave", 0))
		return;
	do {
		seen = interrupts_seen[CHANGE_VECTOR];
	} while (!has_come(until) && !wait_for(&interrupts_seen[CHANGE_VECTOR], seen + 1));
	if (!device_page.removed) {
		check("watch-reset", device_status(0, 0), 0);
		check("watch-begins-again", device_begin(FEATURES_NEEDED), 0);
		check("watch-writes", many(BLOCK_OUT, 8, 4, 512, 8), 0);
		check("watch-reads", many(BLOCK_IN, 8, 4, 512, 8), 0);
	}
	device_end();
	say("devices %x", (u64)hypercall(KVMPV_HC_VIRTIO_DEVICES, 0, 0, 0));
}
