/*
 * A guest that means harm. What it does is data where that is possible: the
 * test puts it into the initrd.
 */
#include "guest.h"

#define JUNK_MAGIC	0x6b6e756a	/* "junk" */
#define MSRS_MAGIC	0x7372736d	/* "msrs" */
#define CHANGED		(1ul << 62)

/* The initrd begins with this; count entries follow. */
struct table {
	u32 magic;
	u32 count;
};

struct junk {
	u64 rax, rdi, rsi, r8, r9, r10;
	u64 rdx;		/* its upper 48 bits: DX is the port */
	u64 relative;		/* bit 0 RDI, bit 1 RSI, bit 2 R8: add the initrd's address */
};

struct msr {
	u32 number;
	u32 write;		/* 0 reads it */
	u64 value;
};

/* Results go to the exec port, 8 bytes each; nobody listening is fine. */
static void report(u64 value)
{
	u32 patience = 1000;

	while (hypercall(KVMPV_HC_PORT_WRITE, KVMPV_PORT_EXEC, address_of(&value),
			 sizeof(value)) == -KVMPV_EAGAIN && patience--)
		hypercall(KVMPV_HC_YIELD, 0, 0, 0);
}

static const void *entries(u32 magic, u32 *count)
{
	const struct table *table = (const void *)start_info->initrd;

	if (start_info->initrd_size < sizeof(*table) || table->magic != magic) {
		say("not ok initrd is no table");
		power_off();
	}
	*count = table->count;
	return table + 1;
}

/* The result, or what no call returns if another register changed. */
static u64 call(const struct junk *junk)
{
	u64 base = start_info->initrd, before[16], after[16];
	u32 i;

	for (i = 0; i < 16; i++)
		before[i] = 0x5a5a5a5a00000000 + i;
	before[0] = junk->rax;
	before[3] = (junk->rdx & ~0xfffful) | gate_port;
	before[4] = junk->rsi + (junk->relative & 2 ? base : 0);
	before[5] = junk->rdi + (junk->relative & 1 ? base : 0);
	before[7] = junk->r8 + (junk->relative & 4 ? base : 0);
	before[8] = junk->r9;
	before[9] = junk->r10;
	before[15] = 2;
	copy(after, before, sizeof(after));
	call_with(after);
	for (i = 1; i < 15; i++)
		if (before[i] != after[i])
			return CHANGED;
	return after[0];
}

void command_junk(void)
{
	u32 count, i;
	const struct junk *junk = entries(JUNK_MAGIC, &count);

	for (i = 0; i < count; i++)
		report(call(junk + i));
	say("junk %d calls", (u64)count);
}

/* n=COUNT records of size=BYTES each. */
void command_flood(void)
{
	static char text[KVMPV_MAX_BUFFER];
	u64 count = option("n", 1000), size = option("size", 80), i;

	if (size > sizeof(text))
		size = sizeof(text);
	for (i = 0; i < size && i < 4096; i++)
		text[i] = (char)('a' + i % 26);
	for (i = 0; i < count; i++)
		log_text(text, size);
	say("flood %d records", count);
}

/* n=COUNT events to itself that it does not even take: interrupts stay off. */
void command_sendstorm(void)
{
	u64 count = option("n", 1000), i, failed = 0;
	long channel = hypercall(KVMPV_HC_EVTCHN_ALLOC, 0, 0, 0);

	apic_init();
	bind_channel((u32)channel, 0, 0x80);
	for (i = 0; i < count; i++)
		failed += hypercall(KVMPV_HC_EVTCHN_SEND, (u64)channel, 0, 0) != 0;
	say("sendstorm %d failed %d", count, failed);
}

/* n=COUNT times another vector for the same channel, which the exec port is bound to. */
void command_bindstorm(void)
{
	u64 count = option("n", 1000), i, failed = 0;
	long channel = hypercall(KVMPV_HC_EVTCHN_ALLOC, 0, 0, 0);

	apic_init();
	for (i = 0; i < count; i++) {
		failed += bind_channel((u32)channel, 0, 0x20 + i % 200) != 0;
		failed += hypercall(KVMPV_HC_PORT_BIND, KVMPV_PORT_EXEC, (u64)channel, 0) != 0;
	}
	say("bindstorm %d failed %d", count, failed);
}

static void stop_at_once(u64 id)
{
	(void)id;
}

/* n=COUNT times vCPU 1 up and down. */
void command_upstorm(void)
{
	u64 count = option("n", 100), i, failed = 0;

	for (i = 0; i < count; i++)
		failed += vcpu_start(1, stop_at_once) != 0;
	say("upstorm %d failed %d", count, failed);
}

static long touch_msr(long argument)
{
	const struct msr *msr = (const void *)argument;

	if (msr->write)
		wrmsr(msr->number, msr->value);
	else
		rdmsr(msr->number);
	return 0;
}

/* Each MSR of the initrd's table: 0, or FAULT + 13, goes to the exec port. */
void command_msrs(void)
{
	u32 count, i;
	const struct msr *msr = entries(MSRS_MAGIC, &count);

	for (i = 0; i < count; i++)
		report((u64)guarded(touch_msr, (long)address_of(msr + i)));
	say("msrs %d touched", (u64)count);
}

static long jump_there(long argument)
{
	__asm__ volatile("jmp *%0" : : "r"(argument));
	__builtin_unreachable();
}

/* to=ADDRESS; with idt=0 nobody catches what comes of it. */
void command_jump(void)
{
	static const u64 none[2];
	u64 to = option("to", 0xd0000000);

	say("jump to %x", to);
	if (!option("idt", 1))
		__asm__ volatile("lidt %0" : : "m"(none));
	say("jump gave %x", guarded(jump_there, (long)to));
}
