/* SPDX-License-Identifier: MIT */
/*
 * The driver of net_driver.h as a whole guest: a PVH kernel for QEMU's microvm, 32-bit,
 * without paging. -DTRANSMIT=0|1 -DBYTES=N. It runs until it is killed.
 */
#include "net_driver.h"

#ifndef TRANSMIT
#define TRANSMIT 1
#define BYTES 64
#endif

#define MMIO_FIRST 0xfeb00000u
#define MMIO_STEP 512
#define MMIO_COUNT 24
#define MEMORY_AT 0x1000000u

asm(".section .note.pvh, \"a\", @note\n"
    ".long 4, 4, 18\n"
    ".asciz \"Xen\"\n"
    ".long _start\n"
    ".text\n"
    ".globl _start\n"
    "_start: movl $stack_end, %esp\n"
    "call run\n"
    ".bss\n"
    ".align 16\n"
    ".skip 8192\n"
    "stack_end:\n"
    ".text\n");

static volatile uint32_t *device;

static void kick(void)
{
	device[0x50 / 4] = TRANSMIT;
}

static void set_up(uint32_t index, uint32_t at)
{
	device[0x30 / 4] = index;
	device[0x38 / 4] = RING;
	device[0x80 / 4] = at + DESC_AT;
	device[0x84 / 4] = 0;
	device[0x90 / 4] = at + AVAIL_AT;
	device[0x94 / 4] = 0;
	device[0xa0 / 4] = at + USED_AT;
	device[0xa4 / 4] = 0;
	device[0x44 / 4] = 1;
}

void run(void)
{
	struct driver driver = {
		.ring = (uint8_t *)MEMORY_AT,
		.ring_address = MEMORY_AT,
		.bytes = BYTES,
		.transmit = TRANSMIT,
		.kick = kick,
	};
	uint32_t i;

	for (i = 0; i < MMIO_COUNT; i++) {
		device = (void *)(MMIO_FIRST + i * MMIO_STEP);
		if (device[0] == 0x74726976 && device[2] == 1)
			break;
	}
	device[0x70 / 4] = 0;
	device[0x70 / 4] = 3;
	device[0x24 / 4] = 0;
	device[0x20 / 4] = (uint32_t)FEATURES;
	device[0x24 / 4] = 1;
	device[0x20 / 4] = (uint32_t)(FEATURES >> 32);
	device[0x70 / 4] = 11;
	set_up(!TRANSMIT, MEMORY_AT + (60u << 20));	/* the other queue: empty */
	set_up(TRANSMIT, MEMORY_AT);
	device[0x70 / 4] = 15;
	net_begin(&driver);
	for (;;)
		net_turn(&driver);
}
