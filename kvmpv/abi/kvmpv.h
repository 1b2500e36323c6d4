/* SPDX-License-Identifier: MIT */
/*
 * The kvmpv guest ABI, version 1.1: what a paravirtualised guest and the kvmpv
 * virtual machine monitor say to each other. This file is the master; any
 * guest may copy it. The reference text is docs/abi/hypercalls.md.
 *
 * Rules that hold for everything below:
 *  - Numbers are never reused. What is withdrawn stays here as a comment.
 *  - Records begin with their version and their size in bytes. Whoever reads
 *    one ignores what lies beyond the size that it knows; whoever fills one
 *    writes no more than the size that the other side has set.
 *  - Addresses are guest-physical. A buffer lies in RAM, in one piece, and is
 *    at most KVMPV_MAX_BUFFER bytes long.
 *  - All calls may be made on all vCPUs at once. All but those of virtio devices
 *    may be made from NMI context.
 */
#ifndef _UAPI_LINUX_KVMPV_H
#define _UAPI_LINUX_KVMPV_H

/* ---- Discovery: CPUID, behind KVM's own leaves at 0x40000000 ------------ */

/*
 * KVMPV_CPUID_BASE: EAX is the highest kvmpv leaf, EBX, ECX and EDX hold the
 * signature "kvmpv:on:kvm".
 */
#define KVMPV_CPUID_BASE		0x40000100
#define KVMPV_SIGNATURE			"kvmpv:on:kvm"
#define KVMPV_SIGNATURE_EBX		0x706d766b	/* "kvmp" */
#define KVMPV_SIGNATURE_ECX		0x6e6f3a76	/* "v:on" */
#define KVMPV_SIGNATURE_EDX		0x6d766b3a	/* ":kvm" */

/*
 * KVMPV_CPUID_FEATURES: EAX is the ABI version (major in the upper half, minor
 * in the lower), EBX the feature bits on offer, EDX the gate (kind in bits
 * 7:0, port in bits 31:16). ECX is 0.
 */
#define KVMPV_CPUID_FEATURES		0x40000101

/*
 * KVMPV_CPUID_START: EAX (low) and EBX (high) are the guest-physical address
 * of struct kvmpv_start_info, ECX is its size in bytes. EDX is 0.
 */
#define KVMPV_CPUID_START		0x40000102

#define KVMPV_CPUID_LAST		0x40000102

#define KVMPV_VERSION_MAJOR		1
#define KVMPV_VERSION_MINOR		1

/* Feature bits, in CPUID and for KVMPV_HC_FEATURES. */
#define KVMPV_FEATURE_PORTS		0x00000001	/* console ports */
#define KVMPV_FEATURE_EVTCHN		0x00000002	/* event channels */
#define KVMPV_FEATURE_REQUESTS		0x00000004	/* requests from the host */
#define KVMPV_FEATURE_VCPU		0x00000008	/* vCPU up and down */
#define KVMPV_FEATURE_VIRTIO		0x00000010	/* virtio devices */

/* ---- The gate: how a call is made --------------------------------------- */

/*
 * KVMPV_GATE_PORT: a 32-bit "out %eax, (%dx)", with the port that
 * KVMPV_CPUID_FEATURES names in DX. The two others are reserved.
 *
 * The number is in RAX, the arguments are in RDI, RSI, R8, R9 and R10 (RDX is
 * the gate's), the 64-bit result comes back in RAX: zero or more, or a negative
 * errno. All other registers and the flags are preserved. Callers run in 64-bit
 * mode at CPL 0; others get -EPERM, other uses of the port -ENOSYS (but "outs"
 * may pass for "out").
 */
#define KVMPV_GATE_PORT			1
#define KVMPV_GATE_VMCALL		2
#define KVMPV_GATE_VMMCALL		3

#define KVMPV_MAX_BUFFER		65536

/* The errors that calls return, negated. The numbers are Linux's. */
#define KVMPV_EPERM			1
#define KVMPV_ENOENT			2
#define KVMPV_EIO			5
#define KVMPV_EAGAIN			11
#define KVMPV_EFAULT			14
#define KVMPV_EBUSY			16
#define KVMPV_EINVAL			22
#define KVMPV_ENOSPC			28
#define KVMPV_EPIPE			32
#define KVMPV_ENOSYS			38
#define KVMPV_EMSGSIZE			90
#define KVMPV_ENOTCONN			107

/* ---- Version and features ------------------------------------------------ */

/*
 * KVMPV_HC_VERSION()
 * OUT: the ABI version, as in KVMPV_CPUID_FEATURES.EAX.
 */
#define KVMPV_HC_VERSION		0x00

/*
 * KVMPV_HC_FEATURES(features)
 * IN:  the feature bits that the guest will use.
 * OUT: 0; -EINVAL if one of them is not on offer.
 * The last announcement holds; it is kept across save and restore.
 */
#define KVMPV_HC_FEATURES		0x01

/* ---- Console ports: byte streams between guest and host ------------------ */

#define KVMPV_PORT_TERMINAL		0
#define KVMPV_PORT_EXEC			1
#define KVMPV_MAX_PORTS			2

/*
 * KVMPV_HC_LOG(address, length)
 * IN:  one record of the kernel's log, text.
 * OUT: the number of bytes taken, always length; -EFAULT, -EMSGSIZE.
 * The record goes to the terminal, if that has room, and to the last lines
 * that a crash report shows. Never blocks, needs no set-up: it may be the
 * first call that a guest makes.
 */
#define KVMPV_HC_LOG			0x10

/*
 * KVMPV_HC_PORT_WRITE(port, address, length)
 * OUT: the number of bytes taken, 1 or more (0 if length is 0); -EAGAIN when
 *      the port has no room: its event comes when it has; -EPIPE when either
 *      side has closed the port; -ENOENT no such port; -EFAULT, -EMSGSIZE.
 */
#define KVMPV_HC_PORT_WRITE		0x11

/*
 * KVMPV_HC_PORT_READ(port, address, length)
 * OUT: the number of bytes read; 0 at the end of file (or if length is 0);
 *      -EAGAIN when there is none yet: its event comes when there is;
 *      -ENOENT, -EFAULT, -EMSGSIZE.
 */
#define KVMPV_HC_PORT_READ		0x12

/*
 * KVMPV_HC_PORT_BIND(port, channel)
 * IN:  the event channel that is sent when the port becomes readable or
 *      writable, reaches its end of file, or changes its window size;
 *      KVMPV_NO_CHANNEL to unbind.
 * OUT: 0; -ENOENT no such port or channel.
 * One event follows every bind, so that nothing is missed.
 */
#define KVMPV_HC_PORT_BIND		0x13

/*
 * KVMPV_HC_PORT_STATUS(port, address of struct kvmpv_port_status)
 * OUT: 0; -ENOENT, -EFAULT; -EINVAL when the record's version or size is.
 */
#define KVMPV_HC_PORT_STATUS		0x14

/*
 * KVMPV_HC_PORT_CLOSE(port)
 * Ends what the guest writes; it may read on. The host reads the end of file
 * after what was written.
 * OUT: 0; -ENOENT.
 */
#define KVMPV_HC_PORT_CLOSE		0x15

#define KVMPV_PORT_STATUS_VERSION	1

#define KVMPV_PORT_READABLE		0x00000001
#define KVMPV_PORT_WRITABLE		0x00000002
#define KVMPV_PORT_EOF			0x00000004	/* the host has closed it */

#ifndef __ASSEMBLY__

#include <linux/types.h>

struct kvmpv_port_status {
	__u16 version;		/* IN: KVMPV_PORT_STATUS_VERSION */
	__u16 size;		/* IN: bytes that the guest has room for */
	__u32 flags;		/* OUT: KVMPV_PORT_* */
	__u16 columns;		/* OUT: the window's size, 0 if unknown */
	__u16 rows;
	__u32 reserved;
};

#endif /* !__ASSEMBLY__ */

/* ---- Event channels: edge interrupts, each an MSI of the guest's choice -- */

#define KVMPV_MAX_CHANNELS		1024
#define KVMPV_NO_CHANNEL		0xffffffff

/*
 * KVMPV_HC_EVTCHN_ALLOC()
 * OUT: the number of a new channel, not bound; -ENOSPC when all are in use.
 */
#define KVMPV_HC_EVTCHN_ALLOC		0x20

/*
 * KVMPV_HC_EVTCHN_BIND(address of struct kvmpv_evtchn_bind)
 * Gives channels the MSI that their events are. All or none are bound.
 * OUT: 0; -EFAULT, -EMSGSIZE; -ENOENT no such channel; -EINVAL when version,
 *      sizes, or a message is: the address lies in 0xfeexxxxx, the delivery
 *      mode is fixed or lowest priority, the trigger edge, the vector 16 to 255.
 */
#define KVMPV_HC_EVTCHN_BIND		0x21

/*
 * KVMPV_HC_EVTCHN_SEND(channel)
 * OUT: 0; -ENOENT no such channel; -ENOTCONN when it is not bound.
 */
#define KVMPV_HC_EVTCHN_SEND		0x22

/*
 * KVMPV_HC_EVTCHN_CLOSE(channel)
 * OUT: 0; -ENOENT. Whatever was bound to the channel no longer sends.
 */
#define KVMPV_HC_EVTCHN_CLOSE		0x23

#define KVMPV_EVTCHN_BIND_VERSION	1

#ifndef __ASSEMBLY__

struct kvmpv_evtchn_message {
	__u64 address;		/* MSI address */
	__u32 data;		/* MSI data */
	__u32 channel;
};

struct kvmpv_evtchn_bind {
	__u16 version;		/* KVMPV_EVTCHN_BIND_VERSION */
	__u16 size;		/* of this header: where the messages begin */
	__u16 count;		/* of messages, 1 to KVMPV_MAX_CHANNELS */
	__u16 message_size;	/* of one message in bytes */
	/* struct kvmpv_evtchn_message[count] follows at size */
};

#endif /* !__ASSEMBLY__ */

/* ---- Requests from the host ---------------------------------------------- */

/*
 * KVMPV_HC_REQUESTS_BIND(channel)
 * IN:  the event channel that is sent when a request is pending;
 *      KVMPV_NO_CHANNEL to unbind.
 * OUT: 0; -ENOENT no such channel. One event follows if something is pending
 *      already.
 */
#define KVMPV_HC_REQUESTS_BIND		0x30

/*
 * KVMPV_HC_REQUESTS_GET(address of struct kvmpv_requests)
 * Takes what is pending: each request is handed out once.
 * OUT: 0; -EFAULT; -EINVAL when the record's version or size is.
 */
#define KVMPV_HC_REQUESTS_GET		0x31

#define KVMPV_REQUESTS_VERSION		1

#define KVMPV_REQUEST_POWEROFF		0x00000001
#define KVMPV_REQUEST_REBOOT		0x00000002
#define KVMPV_REQUEST_SUSPEND		0x00000004	/* reserved */
#define KVMPV_REQUEST_SYSRQ		0x00000008	/* see sysrq */
#define KVMPV_REQUEST_VCPUS		0x00000010	/* see vcpus */
#define KVMPV_REQUEST_DEVICES		0x00000020	/* devices came or went */

#ifndef __ASSEMBLY__

struct kvmpv_requests {
	__u16 version;		/* IN: KVMPV_REQUESTS_VERSION */
	__u16 size;		/* IN: bytes that the guest has room for */
	__u32 pending;		/* OUT: KVMPV_REQUEST_* */
	__u32 sysrq;		/* OUT: the key, ASCII */
	__u32 reserved;
	__u64 vcpus[4];		/* OUT: bit N: APIC id N shall be online */
};

#endif /* !__ASSEMBLY__ */

/* ---- Scheduling ------------------------------------------------------------ */

/* KVMPV_HC_POWEROFF(): ends the domain. Does not return. */
#define KVMPV_HC_POWEROFF		0x40

/* KVMPV_HC_REBOOT(): boots the domain again in place. Does not return. */
#define KVMPV_HC_REBOOT			0x41

/*
 * KVMPV_HC_CRASH(address, length)
 * IN:  why, text; length 0 for none. At most 4096 bytes of it are kept.
 * Ends the domain as crashed; does not return. -EFAULT, -EMSGSIZE.
 */
#define KVMPV_HC_CRASH			0x42

/*
 * KVMPV_HC_YIELD()
 * OUT: 0. Lets the host run something else first.
 */
#define KVMPV_HC_YIELD			0x43

/* ---- vCPUs ------------------------------------------------------------------ */

/*
 * KVMPV_HC_VCPU_UP(APIC id, address of struct kvmpv_vcpu_start)
 * Starts a vCPU that is down, in 64-bit mode, interrupts off, its local APIC
 * as after reset.
 * OUT: 0; -ENOENT no such vCPU; -EBUSY when it is up, or still going down;
 *      -EFAULT; -EINVAL when the record is, or its state is none of 64-bit mode.
 */
#define KVMPV_HC_VCPU_UP		0x50

/*
 * KVMPV_HC_VCPU_DOWN()
 * Stops the calling vCPU. Does not return; -EBUSY on the last one that is up.
 */
#define KVMPV_HC_VCPU_DOWN		0x51

#define KVMPV_VCPU_START_VERSION	1

#ifndef __ASSEMBLY__

struct kvmpv_vcpu_start {
	__u16 version;		/* KVMPV_VCPU_START_VERSION */
	__u16 size;
	__u32 reserved;
	__u64 rip;
	__u64 rsp;
	__u64 rdi;
	__u64 rsi;
	__u64 cr0;		/* PE and PG set */
	__u64 cr3;
	__u64 cr4;		/* PAE set */
	__u64 efer;		/* LME and LMA set */
};

#endif /* !__ASSEMBLY__ */

/* ---- Virtio devices ----------------------------------------------------------- */

/*
 * The devices are those of virtio 1.2, with split rings; this is a transport
 * for them. All of them offer VIRTIO_F_VERSION_1 and VIRTIO_F_ACCESS_PLATFORM,
 * and want both accepted. A device has a number, less than KVMPV_MAX_DEVICES.
 * To notify a queue is a 32-bit "out" of its index to the device's doorbell
 * port, which is no call and not an exit to the virtual machine monitor.
 */
#define KVMPV_MAX_DEVICES		48
#define KVMPV_MAX_QUEUES		64	/* of one device */
#define KVMPV_VIRTIO_CONFIG_MAX		256

/*
 * KVMPV_HC_VIRTIO_DEVICES()
 * OUT: a bitmap: bit N: device N is there. KVMPV_REQUEST_DEVICES tells of
 *      changes. The number of a device that goes while it is open is not used
 *      again before KVMPV_HC_VIRTIO_CLOSE.
 */
#define KVMPV_HC_VIRTIO_DEVICES		0x60

/*
 * KVMPV_HC_VIRTIO_OPEN(device, address of struct kvmpv_virtio_page)
 * IN:  the record begins a page. It is filled, and what is live in it is kept
 *      up to date, until KVMPV_HC_VIRTIO_CLOSE or reboot.
 * OUT: 0; -ENOENT no such device; -EBUSY it is open; -EFAULT; -EINVAL when the
 *      address, or the record's version or size is; -EIO its backend is gone.
 */
#define KVMPV_HC_VIRTIO_OPEN		0x61

/*
 * KVMPV_HC_VIRTIO_STATUS(device, status, features)
 * IN:  the device status, of virtio; 0 resets the device: on return it touches
 *      no memory of the driver's. features are those that the driver accepts,
 *      read by the call that first sets FEATURES_OK.
 * OUT: 0, and the answer in the page's status: without FEATURES_OK if the
 *      features are refused; -ENOENT no such device, or not open; -EINVAL when
 *      status has a bit that virtio has not.
 */
#define KVMPV_HC_VIRTIO_STATUS		0x62

/*
 * KVMPV_HC_VIRTIO_QUEUE(device, address of struct kvmpv_virtio_queue)
 * Sets a queue up and enables it; ring_size 0 stops it: on return the device
 * touches no memory of the queue.
 * OUT: 0; -ENOENT no such device, not open, no such queue or channel; -EBUSY
 *      the queue is set up already; -EINVAL when the record, the ring's size or
 *      an address's alignment is, or FEATURES_OK is not set; -EFAULT the record
 *      or the rings are not in RAM; -EIO the device or its backend is gone.
 */
#define KVMPV_HC_VIRTIO_QUEUE		0x63

/*
 * KVMPV_HC_VIRTIO_CONFIG(device, offset, address, length)
 * Writes to the device's config space. What is there now is in the page.
 * OUT: 0; -ENOENT no such device, or not open; -EINVAL beyond the config space,
 *      or read-only; -EFAULT.
 */
#define KVMPV_HC_VIRTIO_CONFIG		0x64

/*
 * KVMPV_HC_VIRTIO_BIND(device, channel)
 * IN:  the event channel that is sent when something live in the page changes
 *      by the device's doing; KVMPV_NO_CHANNEL to unbind.
 * OUT: 0; -ENOENT no such device, not open, or no such channel.
 * One event follows every bind, so that nothing is missed.
 */
#define KVMPV_HC_VIRTIO_BIND		0x65

/*
 * KVMPV_HC_VIRTIO_CLOSE(device)
 * Resets the device, unbinds its channels, and forgets the page.
 * OUT: 0; -ENOENT no such device, or not open.
 */
#define KVMPV_HC_VIRTIO_CLOSE		0x66

#define KVMPV_VIRTIO_PAGE_VERSION	1
#define KVMPV_VIRTIO_QUEUE_VERSION	1

#ifndef __ASSEMBLY__

struct kvmpv_virtio_page {
	__u16 version;		/* IN: KVMPV_VIRTIO_PAGE_VERSION */
	__u16 size;		/* IN: bytes that the guest has room for */
	__u32 type;		/* OUT: virtio device id */
	__u64 features;		/* OUT: what the device offers */
	__u32 doorbell;		/* OUT: I/O port */
	__u32 queues;		/* OUT: how many */
	__u32 status;		/* live: the device status */
	__u32 generation;	/* live: odd while config changes */
	__u32 config_size;	/* OUT: bytes of config that are used */
	__u32 removed;		/* live: 1 once the device is gone */
	__u16 ring_max[64];	/* OUT: entries at most, by queue */
	__u8 config[256];	/* live */
	__u64 reserved[3];
};

struct kvmpv_virtio_queue {
	__u16 version;		/* KVMPV_VIRTIO_QUEUE_VERSION */
	__u16 size;
	__u16 index;		/* of the queue */
	__u16 ring_size;	/* entries, a power of two; 0 stops the queue */
	__u32 channel;		/* sent for used buffers, or KVMPV_NO_CHANNEL */
	__u32 reserved;
	__u64 descriptors;	/* addresses of the three parts, as virtio has them */
	__u64 driver;
	__u64 device;
};

#endif /* !__ASSEMBLY__ */

/* 0x67 to 0x6f: reserved for the virtio transport. */
/* 0x70 to 0x7f: reserved for the memory reservation. */

/* ---- Start info -------------------------------------------------------------- */

/*
 * At entry RDI holds its address too (and RSI that of Linux's boot_params).
 * It stays valid, and does not change, until the domain ends or reboots.
 */
#define KVMPV_START_INFO_VERSION	1

/* struct kvmpv_memory_range.type; the numbers are those of e820. */
#define KVMPV_MEMORY_RAM		1
#define KVMPV_MEMORY_RESERVED		2

#ifndef __ASSEMBLY__

struct kvmpv_memory_range {
	__u64 address;
	__u64 length;
	__u32 type;		/* KVMPV_MEMORY_* */
	__u32 reserved;
};

struct kvmpv_start_info {
	__u16 version;		/* KVMPV_START_INFO_VERSION */
	__u16 size;		/* of this record in bytes */
	__u32 flags;		/* 0 */
	__u32 tsc_khz;		/* TSC frequency, constant for the domain's life */
	__u32 timer_khz;	/* local APIC timer frequency */
	__u32 boot_vcpus;	/* vCPUs that the guest shall bring up at boot */
	__u32 max_vcpus;	/* vCPUs that may ever be up */
	__u64 apic_ids;		/* address of __u32[max_vcpus], boot vCPU first */
	__u64 memory;		/* address of struct kvmpv_memory_range[] */
	__u32 memory_count;
	__u32 memory_size;	/* of one range in bytes */
	__u64 cmdline;		/* address of the command line, ends in NUL */
	__u64 cmdline_size;	/* in bytes, the NUL included */
	__u64 initrd;		/* address of the initial RAM disk, 0 if none */
	__u64 initrd_size;	/* in bytes */
	__u64 generation;	/* rises with every clone and restore */
	__u8 instance[16];	/* id of this domain, RFC 4122 */
	__u8 seed[32];		/* random, other at every boot */
	char hypervisor[32];	/* version of the VMM, text, ends in NUL */
};

#endif /* !__ASSEMBLY__ */

#endif /* _UAPI_LINUX_KVMPV_H */
