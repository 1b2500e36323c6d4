/* What the parts of the reference guest share. */
#ifndef GUEST_H
#define GUEST_H

#include "kvmpv.h"

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;

#define MAX_VCPUS	256
#define FAULT		0x10000		/* guarded(): FAULT + vector */

/* text.c */
void say(const char *format, ...);	/* %s %d %x %c; one HC_LOG, adds the newline */
void log_text(const char *text, u64 length);
long check(const char *name, long got, long wanted);	/* prints ok or not ok */
u64 text_length(const char *text);
int text_equal(const char *a, const char *b, u64 length);
void copy(void *to, const void *from, u64 length);
extern u32 checks_passed, checks_failed;

/* start.c */
extern const struct kvmpv_start_info *start_info;
extern const u8 *boot_params;
extern u32 gate_port;
u64 option(const char *key, u64 standard);	/* key=NUMBER on the command line */
const char *option_text(const char *key);	/* what follows key= there, or 0 */
void power_off(void) __attribute__((noreturn));

/* calls.S */
extern u64 resume_stack;
extern const char resume_point[];
long guarded(long (*function)(long), long argument);
long at_cpl3(void (*function)(void), long argument);
void user_out32(void);
void user_spin(void);
long compat_out32(long number);
void call_with(u64 registers[16]);

/* interrupts.c */
extern volatile u32 interrupts_seen[256];
void interrupts_init(void);
void apic_init(void);
u32 apic_read(u32 reg);
void apic_write(u32 reg, u32 value);
void apic_send(u32 apic_id, u32 command);
u64 message_address(u32 apic_id);
long bind_channel(u32 channel, u32 apic_id, u32 vector);
long wait_for(volatile u32 *counter, u32 until);	/* sleeps with hlt; 0, or -1 at the limit */

/* nmi.c */
void nmi_taken(void);

/* vcpus.c */
long vcpu_start(u32 id, void (*work)(u64));	/* waits until it is down; one work at a time */
long spin_until(volatile u32 *counter, u32 value);

/* The commands, one for each name that test= may hold. */
void command_discovery(void);
void command_startinfo(void);
void command_version(void);
void command_log(void);
void command_ports(void);
void command_echo(void);
void command_exec(void);
void command_events(void);
void command_channels(void);
void command_clock(void);
void command_requests(void);
void command_vcpus(void);
void command_badcalls(void);
void command_absent(void);
void command_usermode(void);
void command_userspin(void);
void command_compat(void);
void command_preserved(void);
void command_crash(void);
void command_reboot(void);
void command_triple(void);
void command_spin(void);
void command_halt(void);
void command_bench(void);
void command_junk(void);
void command_flood(void);
void command_sendstorm(void);
void command_bindstorm(void);
void command_msrs(void);
void command_race(void);
void command_again(void);
void command_nmi(void);
void command_upstorm(void);
void command_jump(void);
void command_virtio(void);
void command_disk(void);
void command_badrings(void);
void command_resets(void);
void command_watchdisk(void);

static inline long hypercall(u64 number, u64 first, u64 second, u64 third)
{
	register u64 r8 __asm__("r8") = third;
	long result = (long)number;

	__asm__ volatile("out %%eax, (%%dx)"
			 : "+a"(result)
			 : "d"(gate_port), "D"(first), "S"(second), "r"(r8)
			 : "memory");
	return result;
}

static inline u64 rdmsr(u32 number)
{
	u32 low, high;

	__asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(number));
	return (u64)high << 32 | low;
}

static inline void wrmsr(u32 number, u64 value)
{
	__asm__ volatile("wrmsr" : : "c"(number), "a"((u32)value), "d"((u32)(value >> 32))
			 : "memory");
}

static inline u64 rdtsc(void)
{
	u32 low, high;

	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	return (u64)high << 32 | low;
}

static inline void cpuid(u32 leaf, u32 out[4])
{
	__asm__ volatile("cpuid"
			 : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3])
			 : "a"(leaf), "c"(0));
}

static inline u64 address_of(const volatile void *pointer)
{
	return (u64)pointer;
}

#endif /* GUEST_H */
