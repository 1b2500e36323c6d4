/* The peer of firmware/first.S: a PVH kernel that ends QEMU (isa-debug-exit) at once. */
	.section .note.pvh, "a", @note
	.long	4, 4, 18		/* XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz	"Xen"
	.long	_start

	.text
	.globl	_start
_start:	xorl	%eax, %eax
	outb	%al, $0xf4		/* QEMU exits with 2 * AL + 1 */
1:	hlt
	jmp	1b
