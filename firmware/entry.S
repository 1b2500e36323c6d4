/*
 * Where vCPUs enter, the tables that the processor wants, and the stubs of
 * interrupts. The boot state is docs/abi/boot.md's.
 */
#include "kvmpv.h"

	.section .text.first, "ax"
	.globl	start, vcpu_entry
	.code64

/* The boot vCPU: RDI start info, RSI boot_params, no stack. */
start:
	mov	$boot_stack_top, %esp
	mov	%rdi, %rbx
	mov	%rsi, %rbp
	mov	$page_tables, %eax
	mov	%rax, %cr3
	call	load_tables
	mov	%rbx, %rdi
	mov	%rbp, %rsi
	call	guest_main
1:	hlt
	jmp	1b

/* The others: RDI their index, RSP their stack, CR3 ours already. */
vcpu_entry:
	mov	%rdi, %rbx
	call	load_tables
	mov	%rbx, %rdi
	call	vcpu_main
1:	hlt
	jmp	1b

load_tables:
	lgdt	gdt_pointer
	lidt	idt_pointer
	mov	$0x10, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	pop	%rax
	push	$0x08
	push	%rax
	lretq

	.text

/* Stubs of the 256 vectors, 16 bytes each; the processor's own error code or a 0. */
	.globl	interrupt_stubs
	.balign	16
interrupt_stubs:
	vector = 0
	.rept	256
	.balign	16
	.if vector > 31 || !(0x60227d00 >> (vector & 31) & 1)
	push	$0
	.endif
	push	$vector
	jmp	interrupt_common
	vector = vector + 1
	.endr

	.balign	16
interrupt_common:
	push	%rax
	push	%rcx
	push	%rdx
	push	%rbx
	push	%rbp
	push	%rsi
	push	%rdi
	push	%r8
	push	%r9
	push	%r10
	push	%r11
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	mov	%rsp, %rdi
	mov	%rsp, %rbx
	and	$-16, %rsp
	call	interrupt
	mov	%rbx, %rsp
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%r11
	pop	%r10
	pop	%r9
	pop	%r8
	pop	%rdi
	pop	%rsi
	pop	%rbp
	pop	%rbx
	pop	%rdx
	pop	%rcx
	pop	%rax
	add	$16, %rsp
	iretq

	.data
	.globl	gdt_tss
	.balign	16
gdt:
	.quad	0
	.quad	0x00af9b000000ffff	/* 08: 64-bit code */
	.quad	0x00cf93000000ffff	/* 10: data */
	.quad	0x00cf9b000000ffff	/* 18: 32-bit code */
	.quad	0x00cff3000000ffff	/* 20: data, CPL 3 */
	.quad	0x00affb000000ffff	/* 28: 64-bit code, CPL 3 */
gdt_tss:
	.quad	0x0000890000000067	/* 30: task state; interrupts.c fills in its address */
	.quad	0
gdt_end:
gdt_pointer:
	.word	gdt_end - gdt - 1
	.quad	gdt
idt_pointer:
	.word	256 * 16 - 1
	.quad	idt

/* The first and the fourth GiB, identity-mapped, CPL 3 may too; never written at run time. */
	.globl	page_tables
	.balign	4096
page_tables:
	.quad	directory_pointers + 0x67
	.fill	511, 8, 0
directory_pointers:
	.quad	first_gib + 0x67, 0, 0, fourth_gib + 0x67
	.fill	508, 8, 0
first_gib:
	page = 0
	.rept	512
	.quad	page + 0xe7
	page = page + 0x200000
	.endr
fourth_gib:
	page = 0xc0000000
	.rept	512
	.quad	page + 0xf7		/* not cached: the local APIC lies there */
	page = page + 0x200000
	.endr

	.bss
	.globl	cpl0_stack_top, idt
	.balign	4096
idt:	.skip	4096
	.skip	8192
cpl0_stack_top:
	.skip	16384
boot_stack_top:
