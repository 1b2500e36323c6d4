/* Ends of a domain, and what it does when it does nothing. */
#include "guest.h"

/* reason=TEXT up to the next blank; none without it. */
void command_crash(void)
{
	const char *reason = option_text("reason");
	u64 length = 0;

	check("crash-efault", hypercall(KVMPV_HC_CRASH, 0xd0000000, 16, 0), -KVMPV_EFAULT);
	check("crash-too-long", hypercall(KVMPV_HC_CRASH, 0x100000, KVMPV_MAX_BUFFER + 1, 0),
	      -KVMPV_EMSGSIZE);
	while (reason && reason[length] && reason[length] != ' ')
		length++;
	hypercall(KVMPV_HC_CRASH, address_of(reason), length, 0);
	say("not ok crash came back");
}

/* Asks the exec port what to do: r boots again, p goes on. Memory must not have kept its mark. */
void command_reboot(void)
{
	static u32 mark;
	u8 answer = 0;
	long result;

	check("fresh-memory", mark, 0);
	mark = 1;
	say("boot generation %d seed %x", start_info->generation, *(const u64 *)start_info->seed);
	do {
		result = hypercall(KVMPV_HC_PORT_READ, KVMPV_PORT_EXEC, address_of(&answer), 1);
		hypercall(KVMPV_HC_YIELD, 0, 0, 0);
	} while (result == -KVMPV_EAGAIN || !result);	/* 0: the host has to attach anew */
	if (answer == 'r') {
		hypercall(KVMPV_HC_REBOOT, 0, 0, 0);
		say("not ok reboot came back");
	}
}

/* Boots again and again, as fast as it can. */
void command_again(void)
{
	hypercall(KVMPV_HC_REBOOT, 0, 0, 0);
}

void command_triple(void)
{
	static const struct {
		u16 limit;
		u64 base;
	} __attribute__((packed)) none;

	say("triple fault");
	__asm__ volatile("lidt %0; ud2" : : "m"(none));
}

void command_spin(void)
{
	say("spinning");
	for (;;)
		__asm__ volatile("" : : : "memory");
}

/* Says so at the exec port too: the log may have no room. */
void command_halt(void)
{
	static const char text[] = "halting";

	say(text);
	hypercall(KVMPV_HC_PORT_WRITE, KVMPV_PORT_EXEC, address_of(text), sizeof(text) - 1);
	for (;;)
		__asm__ volatile("cli; hlt");
}

/* n=COUNT calls of HC_VERSION, and what one takes. */
void command_bench(void)
{
	u64 count = option("n", 1000), i, cycles, from = rdtsc();

	for (i = 0; i < count; i++)
		hypercall(KVMPV_HC_VERSION, 0, 0, 0);
	cycles = rdtsc() - from;
	say("bench %d calls %d ns each", count, cycles * 1000 / (start_info->tsc_khz / 1000) / count);
}
