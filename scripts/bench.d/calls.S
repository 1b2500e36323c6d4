/* Make CALLS hypercalls that do nothing, then power off: what port_exit.c's guest does, too. */
	.globl	_start
_start:	mov	$0x4b50, %edx		/* the gate's port: a real guest reads it from CPUID */
	mov	$CALLS, %ecx
1:	xor	%eax, %eax		/* KVMPV_HC_VERSION */
	out	%eax, (%dx)
	dec	%ecx
	jnz	1b
	mov	$0x40, %eax		/* KVMPV_HC_POWEROFF */
	out	%eax, (%dx)
