/* The interrupt table, faults that are expected and those that are not, the local APIC. */
#include "guest.h"

#define CPUID_X2APIC		(1u << 21)	/* 1:ECX */
#define MSR_APIC_BASE		0x1b
#define APIC_BASE_X2APIC	0x400
#define MSR_X2APIC		0x800
#define APIC_ADDRESS		0xfee00000ul

#define APIC_EOI		0x0b		/* registers by their x2APIC number */
#define APIC_SPURIOUS		0x0f
#define APIC_ICR		0x30
#define APIC_ICR_HIGH		0x31
#define APIC_ENABLED		0x100

struct frame {
	u64 r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
	u64 vector, error, rip, cs, flags, rsp, ss;
};

volatile u32 interrupts_seen[256];

static struct {
	u32 reserved;
	u64 stacks[12];
	u32 rest;
} __attribute__((packed)) task_state;

static int use_mmio;

extern u64 idt[512];
extern u64 gdt_tss[2];
extern const char interrupt_stubs[];
extern char cpl0_stack_top[];

#define NMI		2
#define INVALID_OPCODE	6

static void resume(struct frame *frame)
{
	if (!(frame->cs & 3) || frame->vector != INVALID_OPCODE)
		frame->rax = FAULT + frame->vector;
	frame->rip = address_of(resume_point);
	frame->rsp = resume_stack;
	frame->cs = 0x08;
	frame->ss = 0x10;
	frame->flags = 2;
}

static void crash_on(const struct frame *frame)
{
	static const char why[] = "refguest: unexpected exception";

	say("exception %d error %x rip %x cs %x rsp %x", frame->vector, frame->error, frame->rip,
	    frame->cs, frame->rsp);
	hypercall(KVMPV_HC_CRASH, address_of(why), sizeof(why) - 1, 0);
	for (;;)
		__asm__ volatile("cli; hlt");
}

void interrupt(struct frame *frame)
{
	if (frame->vector >= 32) {
		interrupts_seen[frame->vector]++;
		apic_write(APIC_EOI, 0);
	} else if (frame->vector == NMI) {
		nmi_taken();
	} else if (resume_stack) {
		resume(frame);
	} else {
		crash_on(frame);
	}
}

/* What comes from CPL 3 wants a stack: the task state says which. */
static void load_task_state(void)
{
	u64 base = address_of(&task_state);

	task_state.stacks[0] = address_of(cpl0_stack_top);
	gdt_tss[0] |= (base & 0xffffff) << 16 | (base & 0xff000000) << 32;
	__asm__ volatile("ltr %w0" : : "r"(0x30) : "memory");
}

void interrupts_init(void)
{
	u64 vector;

	for (vector = 0; vector < 256; vector++) {
		u64 stub = address_of(interrupt_stubs) + vector * 16;

		idt[vector * 2] = (stub & 0xffff) | 0x8e0000080000 | (stub & 0xffff0000) << 32;
		idt[vector * 2 + 1] = stub >> 32;
	}
	load_task_state();
}

u32 apic_read(u32 reg)
{
	if (use_mmio)
		return *(volatile u32 *)(APIC_ADDRESS + reg * 16);
	return (u32)rdmsr(MSR_X2APIC + reg);
}

void apic_write(u32 reg, u32 value)
{
	if (use_mmio)
		*(volatile u32 *)(APIC_ADDRESS + reg * 16) = value;
	else
		wrmsr(MSR_X2APIC + reg, value);
}

/* Sends an interrupt command to one vCPU. */
void apic_send(u32 apic_id, u32 command)
{
	if (!use_mmio) {
		wrmsr(MSR_X2APIC + APIC_ICR, (u64)apic_id << 32 | command);
		return;
	}
	apic_write(APIC_ICR_HIGH, apic_id << 24);
	apic_write(APIC_ICR, command);
}

/* Turns this vCPU's local APIC on: as x2APIC, or with apic=mmio as it wakes up. */
void apic_init(void)
{
	const char *mode = option_text("apic");
	u32 out[4];

	cpuid(1, out);
	use_mmio = !(out[2] & CPUID_X2APIC) || (mode && text_equal(mode, "mmio", 4));
	if (!use_mmio)
		wrmsr(MSR_APIC_BASE, rdmsr(MSR_APIC_BASE) | APIC_BASE_X2APIC);
	apic_write(APIC_SPURIOUS, APIC_ENABLED | 0xff);
}

u64 message_address(u32 apic_id)
{
	return APIC_ADDRESS | (u64)apic_id << 12;
}

long bind_channel(u32 channel, u32 apic_id, u32 vector)
{
	struct {
		struct kvmpv_evtchn_bind header;
		struct kvmpv_evtchn_message message;
	} record = {
		.header = {
			.version = KVMPV_EVTCHN_BIND_VERSION,
			.size = sizeof(record.header),
			.count = 1,
			.message_size = sizeof(record.message),
		},
		.message = {
			.address = message_address(apic_id),
			.data = vector,
			.channel = channel,
		},
	};

	return hypercall(KVMPV_HC_EVTCHN_BIND, address_of(&record), 0, 0);
}

/* An interrupt between the look and the hlt cannot be lost: sti takes effect after hlt began. */
long wait_for(volatile u32 *counter, u32 until)
{
	u32 wakes;

	for (wakes = 0; wakes < 100; wakes++) {
		__asm__ volatile("cli" : : : "memory");
		if (*counter >= until)
			return 0;
		__asm__ volatile("sti; hlt; cli" : : : "memory");
	}
	return -1;
}
