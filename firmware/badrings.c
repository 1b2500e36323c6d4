/* A driver that means harm: rings that lie, kicks at nothing, resets under way. */
#include "virtio.h"

/* Each breaks the ring in one way, and leaves a chain at descriptor 0 made available. */
static void head_out_of_range(void)
{
	submit(RING_SIZE);
}

static void loop(void)
{
	fill(0, BLOCK_OUT, 0, 512);
	ring.descriptors[1].next = 0;
	submit(0);
}

static void next_out_of_range(void)
{
	fill(0, BLOCK_OUT, 0, 512);
	ring.descriptors[1].next = 0xffff;
	submit(0);
}

static void outside_memory(void)
{
	fill(0, BLOCK_OUT, 0, 512);
	ring.descriptors[1].address = 0xd0000000;
	submit(0);
}

static void wraps(void)
{
	fill(0, BLOCK_OUT, 0, 512);
	ring.descriptors[1].address = ~0ul - 100;
	submit(0);
}

static void too_long(void)
{
	fill(0, BLOCK_IN, 0, 512);
	ring.descriptors[1].length = 0xffffffff;
	submit(0);
}

static void available_jumps(void)
{
	ring.available.index = RING_SIZE + 1;
}

static void indirect_unasked(void)
{
	fill(0, BLOCK_OUT, 0, 512);
	ring.descriptors[0].flags = DESC_INDIRECT;
	submit(0);
}

static void readable_behind_writable(void)
{
	fill(0, BLOCK_IN, 0, 512);
	ring.descriptors[2].flags = 0;
	submit(0);
}

static void no_header(void)
{
	fill(0, BLOCK_IN, 0, 512);
	ring.descriptors[0].flags |= DESC_WRITE;
	submit(0);
}

static void no_status(void)
{
	fill(0, BLOCK_OUT, 0, 512);
	ring.descriptors[1].flags = 0;
	submit(0);
}

static const struct {
	const char *name;
	void (*break_ring)(void);
} ways[] = {
	{ "head", head_out_of_range },
	{ "loop", loop },
	{ "next", next_out_of_range },
	{ "outside", outside_memory },
	{ "wraps", wraps },
	{ "long", too_long },
	{ "jump", available_jumps },
	{ "indirect", indirect_unasked },
	{ "order", readable_behind_writable },
	{ "header", no_header },
	{ "status", no_status },
};

/* The device stops and says so, or answers the request: 0, else -1. */
static long wait_stopped(void)
{
	u32 seen;

	do {
		seen = interrupts_seen[CHANGE_VECTOR];
		if (device_page.status & STATUS_NEEDS_RESET || ring.used.index)
			return 0;
	} while (!wait_for(&interrupts_seen[CHANGE_VECTOR], seen + 1));
	return -1;
}

static void one_good_request(const char *name)
{
	check(name, device_begin(FEATURES_NEEDED), 0);
	fill(0, BLOCK_IN, 0, 512);
	submit(0);
	kick(0);
	check(name, wait_used(1), 0);
	check(name, requests[0].status, 0);
	check(name, device_status(0, 0), 0);
}

/* Each way to break a ring; the device takes a good request after each. */
void command_badrings(void)
{
	u32 i;

	check("badrings-found", device_find(TYPE_BLOCK) >= 0, 1);
	for (i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
		check(ways[i].name, device_begin(FEATURES_NEEDED), 0);
		ways[i].break_ring();
		kick(0);
		check(ways[i].name, wait_stopped(), 0);
		say("broken %s status %x used %d", ways[i].name, (u64)device_page.status,
		    (u64)ring.used.index);
		check(ways[i].name, device_status(0, 0), 0);
		one_good_request(ways[i].name);
	}
	device_end();
}

/* Kicks that mean nothing, before, while and after there is a queue. */
static void kick_at_nothing(void)
{
	kick(1);
	kick(KVMPV_MAX_QUEUES);
	kick(0xffffffff);
	out8(device_page.doorbell, 0);
	out8(device_page.doorbell + 1, 0);
	out32(device_page.doorbell + 4, 0);
}

/* n=COUNT resets with requests in flight; the rings are used again at once. */
void command_resets(void)
{
	u32 count = (u32)option("n", 20), i, slot, bad = 0;

	check("resets-found", device_find(TYPE_BLOCK) >= 0, 1);
	kick(0);
	kick_at_nothing();
	for (i = 0; i < count; i++) {
		bad += device_begin(FEATURES_NEEDED) != 0;
		for (slot = 0; slot < SLOTS; slot++) {
			fill(slot, BLOCK_IN, slot, 512);
			submit(3 * slot);
		}
		kick(0);
		if (i & 1)
			kick_at_nothing();
		bad += device_status(0, 0) != 0;
		kick(0);
	}
	check("resets", bad, 0);
	one_good_request("after-resets");
	device_end();
}
