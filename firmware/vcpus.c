/* The other vCPUs: brought up, sent an event, taken down, and brought up again. */
#include "guest.h"

#define VECTOR		0x70
#define STACK		4096
#define PATIENCE	200000

static u8 stacks[MAX_VCPUS][STACK] __attribute__((aligned(16)));
static volatile u32 state[MAX_VCPUS];		/* times that it came up */
static volatile u32 woken[MAX_VCPUS];		/* events that it took */

extern const char vcpu_entry[];

static u64 read_cr3(void)
{
	u64 value;

	__asm__ volatile("mov %%cr3, %0" : "=r"(value));
	return value;
}

static void fill(struct kvmpv_vcpu_start *start, u32 id)
{
	start->version = KVMPV_VCPU_START_VERSION;
	start->size = sizeof(*start);
	start->reserved = 0;
	start->rip = address_of(vcpu_entry);
	start->rsp = address_of(stacks[id]) + STACK;
	start->rdi = id;
	start->rsi = 0x1122334455667788;
	start->cr0 = 0x80010033;
	start->cr3 = read_cr3();
	start->cr4 = 0x20;
	start->efer = 0x500;
}

static long up(u32 id, const struct kvmpv_vcpu_start *start)
{
	return hypercall(KVMPV_HC_VCPU_UP, id, address_of(start), 0);
}

static void (*volatile vcpu_work)(u64 id);

/* Where vcpu_entry goes. */
void vcpu_main(u64 id)
{
	apic_init();
	vcpu_work(id);
	hypercall(KVMPV_HC_VCPU_DOWN, 0, 0, 0);
	say("not ok vcpu-down came back");
}

/* Waits for one event. */
static void take_event(u64 id)
{
	u32 seen;

	seen = interrupts_seen[VECTOR + (id & 0x3f)];
	state[id]++;
	if (!wait_for(&interrupts_seen[VECTOR + (id & 0x3f)], seen + 1))
		woken[id]++;
}

long spin_until(volatile u32 *counter, u32 value)
{
	u32 i;

	for (i = 0; i < PATIENCE; i++) {
		if (*counter >= value)
			return 0;
		hypercall(KVMPV_HC_YIELD, 0, 0, 0);
	}
	return -1;
}

/* -EBUSY as long as the vCPU is still on its way down. */
static long up_when_down(u32 id, const struct kvmpv_vcpu_start *start)
{
	long result = -KVMPV_EBUSY;
	u32 i;

	for (i = 0; i < PATIENCE && result == -KVMPV_EBUSY; i++)
		result = up(id, start);
	return result;
}

long vcpu_start(u32 id, void (*work)(u64))
{
	struct kvmpv_vcpu_start start;

	vcpu_work = work;
	fill(&start, id);
	return up_when_down(id, &start);
}

static void check_records(u32 id)
{
	struct kvmpv_vcpu_start start;

	fill(&start, id);
	check("up-enoent", up(start_info->max_vcpus, &start), -KVMPV_ENOENT);
	check("up-enoent-high", hypercall(KVMPV_HC_VCPU_UP, 1ul << 32, address_of(&start), 0),
	      -KVMPV_ENOENT);
	check("up-self", up(0, &start), -KVMPV_EBUSY);
	check("up-efault", hypercall(KVMPV_HC_VCPU_UP, id, 0xd0000000, 0), -KVMPV_EFAULT);
	start.version = 2;
	check("up-version", up(id, &start), -KVMPV_EINVAL);
	fill(&start, id);
	start.size = 16;
	check("up-size", up(id, &start), -KVMPV_EINVAL);
	fill(&start, id);
	start.cr0 = 0x11;
	check("up-no-paging", up(id, &start), -KVMPV_EINVAL);
	fill(&start, id);
	start.cr4 = 0;
	check("up-no-pae", up(id, &start), -KVMPV_EINVAL);
	fill(&start, id);
	start.efer = 0;
	check("up-no-long-mode", up(id, &start), -KVMPV_EINVAL);
}

static long cycle(u32 id, u32 channel, u32 round)
{
	struct kvmpv_vcpu_start start;

	fill(&start, id);
	if (vcpu_start(id, take_event) || spin_until(&state[id], round))
		return -1;
	if (round == 1 && up(id, &start) != -KVMPV_EBUSY)
		return -2;
	if (bind_channel(channel, id, VECTOR + (id & 0x3f)))
		return -3;
	if (hypercall(KVMPV_HC_EVTCHN_SEND, channel, 0, 0))
		return -4;
	return spin_until(&woken[id], round) ? -5 : 0;
}

void command_vcpus(void)
{
	u32 count = start_info->boot_vcpus, id, done = 0;
	long channel = hypercall(KVMPV_HC_EVTCHN_ALLOC, 0, 0, 0);

	check("down-last", hypercall(KVMPV_HC_VCPU_DOWN, 0, 0, 0), -KVMPV_EBUSY);
	if (count > 1)
		check_records(1);
	for (id = 1; id < count && id < MAX_VCPUS; id++)
		if (!check("vcpu-cycle", cycle(id, (u32)channel, 1), 0) &&
		    !check("vcpu-cycle-again", cycle(id, (u32)channel, 2), 0))
			done++;
	hypercall(KVMPV_HC_EVTCHN_CLOSE, (u64)channel, 0, 0);
	say("vcpus %d up and down twice", (u64)done);
}
