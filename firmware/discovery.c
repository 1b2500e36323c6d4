/* What the VMM says of itself: CPUID, start info, version and features. */
#include "guest.h"

static const u8 *const kvm_signature = (const u8 *)"KVMKVMKVM\0\0\0";

static long bytes_equal(const void *a, const void *b, u64 length)
{
	return text_equal(a, b, length);
}

void command_discovery(void)
{
	u32 out[4];

	cpuid(0x40000000, out);
	check("kvm-signature", bytes_equal(out + 1, kvm_signature, 12), 1);
	cpuid(KVMPV_CPUID_BASE, out);
	check("signature", bytes_equal(out + 1, KVMPV_SIGNATURE, 12), 1);
	check("signature-ebx", out[1], KVMPV_SIGNATURE_EBX);
	check("last-leaf", out[0], KVMPV_CPUID_LAST);
	cpuid(KVMPV_CPUID_FEATURES, out);
	check("version-leaf", out[0], KVMPV_VERSION_MAJOR << 16 | KVMPV_VERSION_MINOR);
	check("features-leaf", out[1], KVMPV_FEATURE_PORTS | KVMPV_FEATURE_EVTCHN |
	      KVMPV_FEATURE_REQUESTS | KVMPV_FEATURE_VCPU | KVMPV_FEATURE_VIRTIO);
	check("features-leaf-ecx", out[2], 0);
	check("gate-kind", out[3] & 0xffff, KVMPV_GATE_PORT);
	check("gate-port", (out[3] >> 16) != 0, 1);
	cpuid(KVMPV_CPUID_START, out);
	check("start-leaf", (long)((u64)out[1] << 32 | out[0]), (long)address_of(start_info));
	check("start-leaf-size", out[2], start_info->size);
	check("start-leaf-edx", out[3], 0);
	cpuid(1, out);
	check("hypervisor-bit", out[2] >> 31, 1);
	check("x2apic-bit", out[2] >> 21 & 1, 1);
	check("tsc-deadline-bit", out[2] >> 24 & 1, 1);
}

/* In order, not overlapping, and with the guest itself in RAM. */
static void check_memory_map(void)
{
	const u8 *at = (const u8 *)start_info->memory;
	u64 end = 0, ram = 0, holds_me = 0, sorted = 1;
	u32 i;

	for (i = 0; i < start_info->memory_count; i++, at += start_info->memory_size) {
		const struct kvmpv_memory_range *range = (const void *)at;

		sorted &= range->address >= end && range->length > 0;
		end = range->address + range->length;
		if (range->type != KVMPV_MEMORY_RAM)
			continue;
		ram += range->length;
		holds_me |= range->address <= 0x100000 && end > address_of(&i);
	}
	check("memory-sorted", (long)sorted, 1);
	check("memory-holds-guest", (long)holds_me, 1);
	say("start ram=%d ranges=%d", ram, (u64)start_info->memory_count);
}

static void check_boot_params(void)
{
	u32 cmdline = *(const u32 *)(boot_params + 0x228);
	u32 initrd = *(const u32 *)(boot_params + 0x218);

	check("boot-params-magic", *(const u32 *)(boot_params + 0x202), 0x53726448);
	check("boot-params-cmdline", text_equal((const char *)(u64)cmdline,
	      (const char *)start_info->cmdline, start_info->cmdline_size), 1);
	check("boot-params-initrd", initrd, (long)start_info->initrd);
	check("boot-params-initrd-size", *(const u32 *)(boot_params + 0x21c),
	      (long)start_info->initrd_size);
}

void command_startinfo(void)
{
	const u32 *ids = (const u32 *)start_info->apic_ids;
	const char *cmdline = (const char *)start_info->cmdline;
	u64 i, seed = 0;

	check("start-version", start_info->version, KVMPV_START_INFO_VERSION);
	check("start-size", start_info->size >= sizeof(*start_info), 1);
	check("start-flags", start_info->flags, 0);
	check("start-tsc", start_info->tsc_khz > 100000, 1);
	check("start-timer", start_info->timer_khz > 1000, 1);
	check("start-vcpus", start_info->boot_vcpus >= 1 &&
	      start_info->boot_vcpus <= start_info->max_vcpus, 1);
	for (i = 0; i < start_info->max_vcpus && ids[i] == i; i++)
		;
	check("start-apic-ids", (long)i, start_info->max_vcpus);
	check("start-cmdline", (long)text_length(cmdline) + 1, (long)start_info->cmdline_size);
	for (i = 0; i < sizeof(start_info->seed); i++)
		seed |= start_info->seed[i];
	check("start-seed", seed != 0, 1);
	check("start-hypervisor", start_info->hypervisor[31], 0);
	check_memory_map();
	check_boot_params();
	say("start vcpus=%d/%d tsc=%d timer=%d initrd=%d", (u64)start_info->boot_vcpus,
	    (u64)start_info->max_vcpus, (u64)start_info->tsc_khz, (u64)start_info->timer_khz,
	    start_info->initrd_size);
	say("hypervisor %s", start_info->hypervisor);
}

void command_version(void)
{
	check("version", hypercall(KVMPV_HC_VERSION, 0, 0, 0),
	      KVMPV_VERSION_MAJOR << 16 | KVMPV_VERSION_MINOR);
	check("features-none", hypercall(KVMPV_HC_FEATURES, 0, 0, 0), 0);
	check("features-ours", hypercall(KVMPV_HC_FEATURES, KVMPV_FEATURE_PORTS |
	      KVMPV_FEATURE_EVTCHN | KVMPV_FEATURE_REQUESTS | KVMPV_FEATURE_VCPU |
	      KVMPV_FEATURE_VIRTIO, 0, 0), 0);
	check("features-unknown", hypercall(KVMPV_HC_FEATURES, 0x80000000, 0, 0), -KVMPV_EINVAL);
	check("features-high", hypercall(KVMPV_HC_FEATURES, 1ul << 40, 0, 0), -KVMPV_EINVAL);
	check("yield", hypercall(KVMPV_HC_YIELD, 0, 0, 0), 0);
}
