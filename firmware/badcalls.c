/* Calls that are none: unknown numbers, wrong widths and directions, the wrong mode. */
#include "guest.h"

#define GENERAL_PROTECTION	13
#define SENTINEL	0x1234567800000043ul	/* YIELD in the low byte: must not be taken for it */

static void check_numbers(void)
{
	static const u64 unknown[] = {
		0x02, 0x0f, 0x16, 0x24, 0x32, 0x44, 0x52, 0x67, 0x70, 0x80, 0xff, 0x100,
		0x10000, 0x7fffffff, 0x80000000, 0xffffffff, 1ul << 32, ~0ul, SENTINEL,
	};
	u32 i;

	for (i = 0; i < sizeof(unknown) / sizeof(unknown[0]); i++)
		check("unknown-number", hypercall(unknown[i], 0, 0, 0), -KVMPV_ENOSYS);
}

#define OUT(name, instruction)							\
static u64 name(void)								\
{										\
	static const u32 data[4] = { KVMPV_HC_YIELD, 1, 2, 3 };			\
	u64 result = KVMPV_HC_YIELD, source = address_of(data), count = 4;	\
										\
	__asm__ volatile("cld; " instruction					\
			 : "+a"(result), "+S"(source), "+c"(count)		\
			 : "d"(gate_port) : "memory");				\
	return result;								\
}

#define IN(name, instruction)							\
static u64 name(void)								\
{										\
	static u32 data[4];							\
	u64 result = 0, target = address_of(data), count = 4;			\
										\
	__asm__ volatile("cld; " instruction					\
			 : "+a"(result), "+D"(target), "+c"(count)		\
			 : "d"(gate_port) : "memory");				\
	return result;								\
}

OUT(out8, "outb %%al, %%dx")
OUT(out16, "outw %%ax, %%dx")
OUT(outs8, "outsb")
OUT(outs32, "outsl")
OUT(rep_outs32, "rep outsl")
IN(in8, "inb %%dx, %%al")
IN(in16, "inw %%dx, %%ax")
IN(in32, "inl %%dx, %%eax")
IN(ins32, "insl")
IN(rep_ins32, "rep insl")

/*
 * An in gives no more than the bits that it reads. KVM shows a VMM each item
 * of 32-bit string output as if it were an out: it may pass for a call.
 */
void command_badcalls(void)
{
	check_numbers();
	check("out8", (long)out8(), -KVMPV_ENOSYS);
	check("out16", (long)out16(), -KVMPV_ENOSYS);
	check("outs8", (long)outs8(), -KVMPV_ENOSYS);
	check("in8", (long)in8(), (u8)-KVMPV_ENOSYS);
	check("in16", (long)in16(), (u16)-KVMPV_ENOSYS);
	check("in32", (long)in32(), (u32)-KVMPV_ENOSYS);
	outs32();
	rep_outs32();
	check("after-outs", hypercall(KVMPV_HC_YIELD, 0, 0, 0), 0);
	ins32();
	rep_ins32();
	check("after-ins", hypercall(KVMPV_HC_YIELD, 0, 0, 0), 0);
}

static u32 port_in(u32 width, u16 port)
{
	u32 value = 0;

	if (width == 1)
		__asm__ volatile("inb %1, %b0" : "+a"(value) : "d"(port));
	else if (width == 2)
		__asm__ volatile("inw %1, %w0" : "+a"(value) : "d"(port));
	else
		__asm__ volatile("inl %1, %0" : "+a"(value) : "d"(port));
	return value;
}

/* What a PC has and this machine has not: reads as all ones, and swallows what is written. */
void command_absent(void)
{
	static const u16 ports[] = { 0x20, 0x40, 0x60, 0x64, 0x71, 0x80, 0x3f8, 0xcf8, 0xffff };
	volatile u8 *hole = (volatile u8 *)0xd0000000;
	u64 ones = 1;
	u32 i;

	for (i = 0; i < sizeof(ports) / sizeof(ports[0]); i++) {
		ones &= port_in(1, ports[i]) == 0xff;
		ones &= port_in(2, ports[i]) == 0xffff;
		ones &= port_in(4, ports[i]) == 0xffffffff;
		__asm__ volatile("outb %b0, %1" : : "a"(0), "d"(ports[i]));
	}
	check("absent-ports", (long)ones, 1);
	*hole = 0;
	*(volatile u64 *)hole = 0;
	check("absent-memory-8", *hole, 0xff);
	check("absent-memory-32", *(volatile u32 *)hole, 0xffffffff);
	check("absent-memory-64", (long)*(volatile u64 *)hole, -1);
	check("absent-memory-split", (long)*(volatile u64 *)(hole + 4093), -1);
}

/* Every register but RAX, and the flags, come back as they went. */
void command_preserved(void)
{
	u64 before[16], after[16];
	u64 i, changed = 0;

	for (i = 0; i < 16; i++)
		before[i] = 0xa5a5000000000000 + i * 0x0101010101;
	before[0] = KVMPV_HC_VERSION;
	before[3] = 0xfedcba9876540000 | gate_port;
	before[15] = 0xcd7;		/* all status flags and DF */
	copy(after, before, sizeof(after));
	call_with(after);
	__asm__ volatile("cld");
	check("call-with", (long)after[0], KVMPV_VERSION_MAJOR << 16 | KVMPV_VERSION_MINOR);
	for (i = 1; i < 16; i++)
		changed |= (u64)(before[i] != after[i]) << i;
	check("preserved", (long)changed, 0);
}

/* A KVM without hardware behind it may not let CPL 3 reach a port, whatever its IOPL. */
static void check_cpl3(const char *name, long number)
{
	long result = at_cpl3(user_out32, number);

	check(name, result == FAULT + GENERAL_PROTECTION ? -KVMPV_EPERM : result, -KVMPV_EPERM);
	say("%s %s", name, result < 0 ? "reached the gate" : "was stopped before the gate");
}

void command_usermode(void)
{
	check_cpl3("cpl3", KVMPV_HC_YIELD);
	check_cpl3("cpl3-unknown", 0x999);
	check_cpl3("cpl3-poweroff", KVMPV_HC_POWEROFF);
}

void command_compat(void)
{
	check("compat", (int)compat_out32(KVMPV_HC_YIELD), -KVMPV_EPERM);
}

void command_userspin(void)
{
	say("spinning at CPL 3");
	at_cpl3(user_spin, 0);
}
