/* Requests from the host: does what it is asked, until it is asked to end. */
#include "guest.h"

#define VECTOR	0x48

static long get(struct kvmpv_requests *record)
{
	record->version = KVMPV_REQUESTS_VERSION;
	record->size = sizeof(*record);
	return hypercall(KVMPV_HC_REQUESTS_GET, address_of(record), 0, 0);
}

static void check_bad(struct kvmpv_requests *record)
{
	record->version = 7;
	record->size = sizeof(*record);
	check("requests-version", hypercall(KVMPV_HC_REQUESTS_GET, address_of(record), 0, 0),
	      -KVMPV_EINVAL);
	record->version = KVMPV_REQUESTS_VERSION;
	record->size = 4;
	check("requests-size", hypercall(KVMPV_HC_REQUESTS_GET, address_of(record), 0, 0),
	      -KVMPV_EINVAL);
	check("requests-efault", hypercall(KVMPV_HC_REQUESTS_GET, 0xd0000000, 0, 0),
	      -KVMPV_EFAULT);
	check("requests-bind-enoent", hypercall(KVMPV_HC_REQUESTS_BIND, 99, 0, 0), -KVMPV_ENOENT);
	check("requests-unbind", hypercall(KVMPV_HC_REQUESTS_BIND, KVMPV_NO_CHANNEL, 0, 0), 0);
}

static void act(const struct kvmpv_requests *record)
{
	say("request %x", (u64)record->pending);
	if (record->pending & KVMPV_REQUEST_SYSRQ)
		say("sysrq %c", (u64)record->sysrq);
	if (record->pending & KVMPV_REQUEST_VCPUS)
		say("vcpus %x %x %x %x", record->vcpus[0], record->vcpus[1], record->vcpus[2],
		    record->vcpus[3]);
	if (record->pending & KVMPV_REQUEST_REBOOT)
		hypercall(KVMPV_HC_REBOOT, 0, 0, 0);
	if (record->pending & KVMPV_REQUEST_POWEROFF)
		power_off();
}

void command_requests(void)
{
	long channel = hypercall(KVMPV_HC_EVTCHN_ALLOC, 0, 0, 0);
	struct kvmpv_requests record;

	apic_init();
	check_bad(&record);
	check("requests-channel", bind_channel((u32)channel, 0, VECTOR), 0);
	check("requests-bind", hypercall(KVMPV_HC_REQUESTS_BIND, (u64)channel, 0, 0), 0);
	say("ready");
	for (;;) {
		u32 seen = interrupts_seen[VECTOR];

		if (get(&record))
			break;
		if (record.pending & KVMPV_REQUEST_DEVICES && option("devices", 0))
			return;
		if (record.pending)
			act(&record);
		else
			while (wait_for(&interrupts_seen[VECTOR], seen + 1))
				;
	}
	check("requests-get", -1, 0);
}
