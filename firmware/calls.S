/*
 * Calls that C cannot make: with every register set, in the wrong width,
 * direction or mode, and code that may fault.
 */
#include "kvmpv.h"

	.text

	.macro	save
	push	%rbx
	push	%rbp
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	.endm

	.macro	restore
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%rbp
	pop	%rbx
	.endm

/*
 * long guarded(long (*function)(long), long argument): what the function
 * returns, or FAULT + vector if it faults. What runs at CPL 3 comes back here
 * too: with ud2, its RAX being the result.
 */
	.globl	guarded, resume_point
guarded:
	save
	mov	%rsp, resume_stack
	mov	%rdi, %rax
	mov	%rsi, %rdi
	call	*%rax
resume_point:
	movq	$0, resume_stack
	restore
	ret

/* long at_cpl3(function, argument): the same at CPL 3 with IOPL 3; it ends in ud2. */
	.globl	at_cpl3
at_cpl3:
	save
	mov	%rsp, resume_stack
	mov	%rdi, %rax
	mov	%rsi, %rdi
	push	$0x23
	push	$user_stack_top
	push	$0x3002
	push	$0x2b
	push	%rax
	iretq

	.globl	user_out32, user_spin
user_out32:
	mov	%rdi, %rax
	mov	gate_port, %edx
	out	%eax, (%dx)
	ud2
user_spin:
	jmp	user_spin

/* long compat_out32(long number): in 32-bit mode at CPL 0; the low half counts. */
	.globl	compat_out32
compat_out32:
	mov	%edi, %eax
	mov	gate_port, %edx
	push	$0x18
	push	$1f
	lretq
	.code32
1:	out	%eax, (%dx)
	ljmp	$0x08, $2f
	.code64
2:	ret

/*
 * void call_with(unsigned long registers[16]): RAX RBX RCX RDX RSI RDI RBP R8
 * to R15 and the flags are loaded from there and stored there.
 */
	.globl	call_with
call_with:
	save
	push	%rdi
	mov	%rsp, call_stack
	mov	%rdi, call_registers
	mov	%rdi, %rax
	push	15*8(%rax)
	popfq
	mov	1*8(%rax), %rbx
	mov	2*8(%rax), %rcx
	mov	3*8(%rax), %rdx
	mov	4*8(%rax), %rsi
	mov	5*8(%rax), %rdi
	mov	6*8(%rax), %rbp
	mov	7*8(%rax), %r8
	mov	8*8(%rax), %r9
	mov	9*8(%rax), %r10
	mov	10*8(%rax), %r11
	mov	11*8(%rax), %r12
	mov	12*8(%rax), %r13
	mov	13*8(%rax), %r14
	mov	14*8(%rax), %r15
	mov	(%rax), %rax
	out	%eax, (%dx)
	mov	%rax, call_result
	mov	call_registers, %rax
	mov	%rbx, 1*8(%rax)
	mov	%rcx, 2*8(%rax)
	mov	%rdx, 3*8(%rax)
	mov	%rsi, 4*8(%rax)
	mov	%rdi, 5*8(%rax)
	mov	%rbp, 6*8(%rax)
	mov	%r8, 7*8(%rax)
	mov	%r9, 8*8(%rax)
	mov	%r10, 9*8(%rax)
	mov	%r11, 10*8(%rax)
	mov	%r12, 11*8(%rax)
	mov	%r13, 12*8(%rax)
	mov	%r14, 13*8(%rax)
	mov	%r15, 14*8(%rax)
	pushfq
	pop	15*8(%rax)
	mov	call_result, %rbx
	mov	%rbx, (%rax)
	pop	%rdi
	restore
	ret

	.bss
	.globl	resume_stack
	.balign	16
	.skip	4096
user_stack_top:
resume_stack:	.skip	8
call_stack:	.skip	8
call_registers:	.skip	8
call_result:	.skip	8
