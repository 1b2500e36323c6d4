/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Print what one exit to user space for a port write costs in C, in nanoseconds: the floor
 * under every hypercall. The guest runs the loop of calls.S, which kvmpv's side runs too. Arguments: exits to count (100000), register sets to sync (0; 1 REGS, 2 SREGS, 3 both).
 * With sets to sync each exit also reads and writes RAX, as a VMM that answers would. What is
 * printed is the median of 20 batches in the thread's own time, so that a busy machine counts less.
 */
#include <err.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define MEMORY	0x200000UL
#define CODE	0x1000UL
#define TABLES	0x9000UL
#define PORT	0x4b50
#define BATCHES	20

static const uint8_t code[] = {
	0x66, 0xba, PORT & 0xff, PORT >> 8,	/* mov $PORT, %dx */
	0x31, 0xc0,				/* 1: xor %eax, %eax */
	0xef,					/* out %eax, (%dx) */
	0xff, 0xc9,				/* dec %ecx: from 0, so 2^32 times */
	0x75, 0xf9,				/* jnz 1b */
};

static int vcpu;
static struct kvm_run *run;

static int check(int result, const char *what)
{
	if (result < 0)
		err(1, "%s", what);
	return result;
}

static void load(uint8_t *memory)
{
	uint64_t *table = (uint64_t *)(memory + TABLES);

	memcpy(memory + CODE, code, sizeof(code));
	table[0] = (TABLES + 0x1000) | 3;
	table[512] = (TABLES + 0x2000) | 3;
	table[1024] = 0x83;			/* the first 2 MiB, one large page */
}

static void long_mode(void)
{
	struct kvm_segment flat = { .limit = 0xffffffff, .present = 1, .s = 1, .g = 1 };
	struct kvm_regs regs = { .rip = CODE, .rflags = 2 };
	struct kvm_sregs sregs;

	check(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	flat.type = 3;
	flat.selector = 0x10;
	flat.db = 1;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = flat;
	flat.type = 11;
	flat.selector = 0x8;
	flat.db = 0;
	flat.l = 1;
	sregs.cs = flat;
	sregs.cr0 = 0x80050033;
	sregs.cr3 = TABLES;
	sregs.cr4 = 0x220;
	sregs.efer = 0x500;
	check(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	check(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
}

static void create(void)
{
	int kvm = check(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	int vm = check(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	int size = check(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
	struct kvm_enable_cap split = { .cap = KVM_CAP_SPLIT_IRQCHIP };
	uint8_t *memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE,
			       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct kvm_userspace_memory_region slot = {
		.memory_size = MEMORY, .userspace_addr = (uintptr_t)memory,
	};

	if (memory == MAP_FAILED)
		err(1, "memory");
	load(memory);
	check(ioctl(vm, KVM_ENABLE_CAP, &split), "KVM_CAP_SPLIT_IRQCHIP");
	check(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot), "KVM_SET_USER_MEMORY_REGION");
	vcpu = check(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED)
		err(1, "run page");
	long_mode();
}

static void loop(long count, int synced)
{
	for (long i = 0; i < count; i++) {
		check(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
		if (run->exit_reason != KVM_EXIT_IO || run->io.port != PORT)
			errx(1, "exit %u instead of a port write", run->exit_reason);
		if (synced) {
			run->s.regs.regs.rax += 1;
			run->kvm_dirty_regs = KVM_SYNC_X86_REGS;
		}
	}
}

static double thread_time(void)
{
	struct timespec now;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	return now.tv_sec * 1e9 + now.tv_nsec;
}

static int ascending(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	long count = argc > 1 ? atol(argv[1]) : 100000;
	int synced = argc > 2 ? atoi(argv[2]) : 0;
	double spent[BATCHES];

	create();
	run->kvm_valid_regs = synced;
	loop(count / BATCHES + 1, synced);
	for (int batch = 0; batch < BATCHES; batch++) {
		double before = thread_time();

		loop(count / BATCHES + 1, synced);
		spent[batch] = (thread_time() - before) / (count / BATCHES + 1);
	}
	qsort(spent, BATCHES, sizeof(spent[0]), ascending);
	printf("%.0f\n", spent[BATCHES / 2]);
	return 0;
}
