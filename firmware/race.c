/* All vCPUs at once on the same few channels and ports: what one does, another undoes. */
#include "guest.h"

static u8 buffers[MAX_VCPUS][64];
static volatile u32 finished;
static volatile u32 strange;		/* results that no call has */

static u64 next(u64 *state)
{
	*state = *state * 6364136223846793005 + 1442695040888963407;
	return *state >> 33;
}

static void one(u64 id, u64 dice)
{
	u64 channel = dice >> 8 & 7, buffer = address_of(buffers[id]);
	long result;

	switch (dice & 15) {
	case 0:
	case 1:
		result = hypercall(KVMPV_HC_EVTCHN_ALLOC, 0, 0, 0);
		break;
	case 2:
	case 3:
		result = hypercall(KVMPV_HC_EVTCHN_CLOSE, channel, 0, 0);
		break;
	case 4:
	case 5:
		result = bind_channel((u32)channel, (u32)id, 0x90);
		break;
	case 6:
	case 7:
		result = hypercall(KVMPV_HC_EVTCHN_SEND, channel, 0, 0);
		break;
	case 8:
		result = hypercall(KVMPV_HC_PORT_BIND, KVMPV_PORT_EXEC, channel, 0);
		break;
	case 9:
		result = hypercall(KVMPV_HC_REQUESTS_BIND, channel, 0, 0);
		break;
	case 10:
		result = hypercall(KVMPV_HC_PORT_READ, KVMPV_PORT_EXEC, buffer, 64);
		break;
	case 11:
		result = hypercall(KVMPV_HC_PORT_WRITE, KVMPV_PORT_EXEC, buffer, 64);
		break;
	case 12:
		result = hypercall(KVMPV_HC_PORT_STATUS, KVMPV_PORT_EXEC, buffer, 0);
		break;
	default:
		result = hypercall(KVMPV_HC_YIELD, 0, 0, 0);
	}
	if (result < -4095 || result > KVMPV_MAX_BUFFER)
		strange++;
}

static void work(u64 id)
{
	u64 count = option("n", 300), dice = id + rdtsc();

	while (count--)
		one(id, next(&dice));
	__asm__ volatile("lock incl %0" : "+m"(finished) : : "memory");
}

void command_race(void)
{
	u32 count = start_info->boot_vcpus, id;

	apic_init();
	for (id = 1; id < count; id++)
		check("race-up", vcpu_start(id, work), 0);
	work(0);
	check("race-finished", spin_until(&finished, count), 0);
	check("race-strange", strange, 0);
	for (id = 0; id < 1024; id++)
		hypercall(KVMPV_HC_EVTCHN_CLOSE, id, 0, 0);
}
