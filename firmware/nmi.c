/* Calls from NMI context, wherever the NMI comes: also between a call and its result. */
#include "guest.h"

#define DELIVER_NMI	0x4400		/* and assert the level */
#define PATIENCE	200000
#define VERSION		(KVMPV_VERSION_MAJOR << 16 | KVMPV_VERSION_MINOR)

static volatile u32 taken;
static volatile u32 wrong;

void nmi_taken(void)
{
	static const char text[] = "nmi\n";
	u64 length = sizeof(text) - 1;

	if (hypercall(KVMPV_HC_VERSION, 0, 0, 0) != VERSION)
		wrong++;
	if (!taken && hypercall(KVMPV_HC_LOG, address_of(text), length, 0) != (long)length)
		wrong++;
	taken++;
}

/* The next one is sent when the last was taken: a processor keeps one, and drops the others. */
static void send_all(u64 id)
{
	u64 count = option("n", 100), patience, i;

	(void)id;
	for (i = 0; i < count; i++) {
		apic_send(0, DELIVER_NMI);
		for (patience = PATIENCE; taken <= i && patience; patience--)
			hypercall(KVMPV_HC_YIELD, 0, 0, 0);
	}
}

/* n=COUNT NMIs: from vCPU 1 if there is one, and else from itself. */
void command_nmi(void)
{
	u64 count = option("n", 100), patience;

	apic_init();
	if (start_info->boot_vcpus > 1)
		check("nmi-sender-up", vcpu_start(1, send_all), 0);
	else
		send_all(0);
	for (patience = PATIENCE; taken < count && patience; patience--)
		if (hypercall(KVMPV_HC_VERSION, 0, 0, 0) != VERSION)
			wrong++;
	check("nmi-taken", taken, count);
	check("nmi-wrong", wrong, 0);
}
