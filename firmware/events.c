/* Event channels, and the clocks by which a guest lives. */
#include "guest.h"

#define FIRST_VECTOR	0x50

static struct {
	struct kvmpv_evtchn_bind header;
	struct kvmpv_evtchn_message messages[KVMPV_MAX_CHANNELS];
} many;

static long bind_many(u32 count)
{
	many.header.version = KVMPV_EVTCHN_BIND_VERSION;
	many.header.size = sizeof(many.header);
	many.header.count = (u16)count;
	many.header.message_size = sizeof(many.messages[0]);
	return hypercall(KVMPV_HC_EVTCHN_BIND, address_of(&many), 0, 0);
}

static void fill(u32 index, u32 channel, u32 vector)
{
	many.messages[index].address = message_address(0);
	many.messages[index].data = vector;
	many.messages[index].channel = channel;
}

static void check_bad_binds(u32 channel)
{
	fill(0, channel, FIRST_VECTOR);
	many.messages[0].address = 0xfed00000;
	check("bind-bad-address", bind_many(1), -KVMPV_EINVAL);
	many.messages[0].address = 0x1fee00000;
	check("bind-high-address", bind_many(1), -KVMPV_EINVAL);
	fill(0, channel, 15);
	check("bind-bad-vector", bind_many(1), -KVMPV_EINVAL);
	fill(0, channel, 0x400 | FIRST_VECTOR);
	check("bind-nmi", bind_many(1), -KVMPV_EINVAL);
	fill(0, channel, 0x200 | FIRST_VECTOR);
	check("bind-smi", bind_many(1), -KVMPV_EINVAL);
	fill(0, channel, 0x8000 | FIRST_VECTOR);
	check("bind-level", bind_many(1), -KVMPV_EINVAL);
	fill(0, 1000, FIRST_VECTOR);
	check("bind-enoent", bind_many(1), -KVMPV_ENOENT);
	fill(0, channel, FIRST_VECTOR);
	check("bind-none", bind_many(0), -KVMPV_EINVAL);
	check("bind-too-many", bind_many(KVMPV_MAX_CHANNELS + 1), -KVMPV_EINVAL);
	bind_many(1);
	many.header.version = 9;
	check("bind-version", hypercall(KVMPV_HC_EVTCHN_BIND, address_of(&many), 0, 0),
	      -KVMPV_EINVAL);
	many.header.version = KVMPV_EVTCHN_BIND_VERSION;
	many.header.message_size = 8;
	check("bind-message-size", hypercall(KVMPV_HC_EVTCHN_BIND, address_of(&many), 0, 0),
	      -KVMPV_EINVAL);
	many.header.message_size = 65535;
	many.header.count = KVMPV_MAX_CHANNELS;
	check("bind-too-long", hypercall(KVMPV_HC_EVTCHN_BIND, address_of(&many), 0, 0),
	      -KVMPV_EMSGSIZE);
	check("bind-efault", hypercall(KVMPV_HC_EVTCHN_BIND, 0xd0000000, 0, 0), -KVMPV_EFAULT);
}

/* All or none: a bad message behind a good one leaves the good one's channel unbound. */
static void check_all_or_none(u32 first, u32 second)
{
	fill(0, first, FIRST_VECTOR);
	fill(1, second, 3);
	check("bind-one-is-bad", bind_many(2), -KVMPV_EINVAL);
	check("bind-none-was-bound", hypercall(KVMPV_HC_EVTCHN_SEND, first, 0, 0),
	      -KVMPV_ENOTCONN);
}

void command_events(void)
{
	long first = hypercall(KVMPV_HC_EVTCHN_ALLOC, 0, 0, 0);
	long second = hypercall(KVMPV_HC_EVTCHN_ALLOC, 0, 0, 0);
	u32 a = interrupts_seen[FIRST_VECTOR], b = interrupts_seen[FIRST_VECTOR + 1];

	apic_init();
	check("alloc", first >= 0 && first != second, 1);
	check("send-unbound", hypercall(KVMPV_HC_EVTCHN_SEND, (u64)first, 0, 0), -KVMPV_ENOTCONN);
	check_all_or_none((u32)first, (u32)second);
	check_bad_binds((u32)second);
	fill(0, (u32)first, FIRST_VECTOR);
	fill(1, (u32)second, FIRST_VECTOR + 1);
	check("bind", bind_many(2), 0);
	check("send", hypercall(KVMPV_HC_EVTCHN_SEND, (u64)first, 0, 0), 0);
	check("send-arrives", wait_for(&interrupts_seen[FIRST_VECTOR], a + 1), 0);
	check("send-second", hypercall(KVMPV_HC_EVTCHN_SEND, (u64)second, 0, 0), 0);
	check("second-arrives", wait_for(&interrupts_seen[FIRST_VECTOR + 1], b + 1), 0);
	check("rebind", bind_channel((u32)first, 0, FIRST_VECTOR + 1), 0);
	check("send-rebound", hypercall(KVMPV_HC_EVTCHN_SEND, (u64)first, 0, 0), 0);
	check("rebound-arrives", wait_for(&interrupts_seen[FIRST_VECTOR + 1], b + 2), 0);
	check("close", hypercall(KVMPV_HC_EVTCHN_CLOSE, (u64)first, 0, 0), 0);
	check("send-closed", hypercall(KVMPV_HC_EVTCHN_SEND, (u64)first, 0, 0), -KVMPV_ENOENT);
	check("close-twice", hypercall(KVMPV_HC_EVTCHN_CLOSE, (u64)first, 0, 0), -KVMPV_ENOENT);
	check("send-enoent", hypercall(KVMPV_HC_EVTCHN_SEND, ~0ul, 0, 0), -KVMPV_ENOENT);
	hypercall(KVMPV_HC_EVTCHN_CLOSE, (u64)second, 0, 0);
}

/* As many channels as there may be, bound with one call, and all given back. */
void command_channels(void)
{
	u32 count = 0, closed = 0, i, seen = interrupts_seen[FIRST_VECTOR];
	long result;

	apic_init();
	while ((result = hypercall(KVMPV_HC_EVTCHN_ALLOC, 0, 0, 0)) >= 0 &&
	       count < KVMPV_MAX_CHANNELS)
		fill(count++, (u32)result, FIRST_VECTOR);
	check("alloc-all", count, KVMPV_MAX_CHANNELS);
	check("alloc-enospc", result, -KVMPV_ENOSPC);
	check("bind-all", bind_many(count), 0);
	check("send-last", hypercall(KVMPV_HC_EVTCHN_SEND, many.messages[count - 1].channel, 0, 0),
	      0);
	check("last-arrives", wait_for(&interrupts_seen[FIRST_VECTOR], seen + 1), 0);
	for (i = 0; i < count; i++)
		closed += !hypercall(KVMPV_HC_EVTCHN_CLOSE, many.messages[i].channel, 0, 0);
	check("close-all", closed, count);
}

#define APIC_TIMER		0x32
#define APIC_TIMER_COUNT	0x38
#define APIC_TIMER_DIVIDE	0x3e
#define TIMER_VECTOR		0x60

/* The local APIC's timer against the TSC, by the frequencies of start info: never early. */
void command_clock(void)
{
	u32 seen = interrupts_seen[TIMER_VECTOR];
	u64 from, cycles, milliseconds = 20;

	apic_init();
	apic_write(APIC_TIMER_DIVIDE, 0xb);
	apic_write(APIC_TIMER, TIMER_VECTOR);
	from = rdtsc();
	apic_write(APIC_TIMER_COUNT, (u32)(start_info->timer_khz * milliseconds));
	check("timer-fires", wait_for(&interrupts_seen[TIMER_VECTOR], seen + 1), 0);
	cycles = rdtsc() - from;
	check("timer-not-early", cycles * 10 >= start_info->tsc_khz * milliseconds * 9, 1);
	check("timer-not-late", cycles <= start_info->tsc_khz * 1000ul, 1);
	say("clock %d us by TSC for %d us", cycles * 1000 / start_info->tsc_khz,
	    milliseconds * 1000);
}
