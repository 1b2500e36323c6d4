/* SPDX-License-Identifier: MIT */
/*
 * Guest memory as a data plane sees it: a table of regions, and the only
 * functions that write to it.
 *
 * Whatever lies in guest memory changes while it is read. So a value is loaded
 * once, by one of the load functions, and what was checked is what is used.
 */
#ifndef KVMPV_DATAPLANE_MEMORY_H
#define KVMPV_DATAPLANE_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "virtio's numbers are little-endian, and are used as they are"
#endif

#define MEMORY_MAX_REGIONS 64
#define MEMORY_LOG_PAGE 4096

#define usually(condition) __builtin_expect(!!(condition), 1)
#define seldom(condition) __builtin_expect(!!(condition), 0)

struct memory_region {
	uint64_t gpa;
	uint64_t size;
	uint8_t *address;
};

/* The entry behind the last one is all zero. */
struct guest_memory {
	uint32_t count;
	struct memory_region regions[MEMORY_MAX_REGIONS + 1];
	/* One bit for each page of 4 KiB, as VHOST_F_LOG_ALL has it; NULL: nobody asks. */
	uint8_t *dirty;
	uint64_t dirty_bytes;
};

/* ---- set-up */

/* Add a region; false when it is empty, wraps, overlaps, or is one too many. */
static inline bool memory_add(struct guest_memory *memory, uint64_t gpa, uint64_t size,
			      uint8_t *address)
{
	uint32_t i;

	if (memory->count == MEMORY_MAX_REGIONS || !size || gpa + size < gpa || !address)
		return false;
	for (i = 0; i < memory->count; i++) {
		const struct memory_region *other = &memory->regions[i];

		if (gpa < other->gpa + other->size && other->gpa < gpa + size)
			return false;
	}
	memory->regions[memory->count].gpa = gpa;
	memory->regions[memory->count].size = size;
	memory->regions[memory->count].address = address;
	memory->count++;
	return true;
}

static inline const struct memory_region *memory_region_of(const struct guest_memory *memory,
							   const void *address)
{
	uint32_t i;

	for (i = 0; i < memory->count; i++) {
		const struct memory_region *region = &memory->regions[i];

		if ((uintptr_t)address - (uintptr_t)region->address < region->size)
			return region;
	}
	return NULL;
}

/* Say whether `length` bytes at an address of ours all lie in one region. */
static inline bool memory_holds(const struct guest_memory *memory, const void *address,
				uint64_t length)
{
	const struct memory_region *region = memory_region_of(memory, address);

	return region &&
	       length <= region->size - ((uintptr_t)address - (uintptr_t)region->address);
}

/* ---- from the guest's addresses to ours */

/*
 * Return our address of `gpa`, or NULL where that is not RAM; `run` is how many
 * of the `length` bytes from there on lie in the same region. `hint` is the
 * caller's own: the region that was found last.
 */
static inline uint8_t *memory_at(const struct guest_memory *memory,
				 const struct memory_region **hint, uint64_t gpa, uint64_t length,
				 uint64_t *run)
{
	const struct memory_region *region = *hint;
	uint64_t offset = gpa - region->gpa;

	if (seldom(offset >= region->size)) {
		for (region = memory->regions; region->size; region++) {
			offset = gpa - region->gpa;
			if (offset < region->size)
				break;
		}
		if (!region->size)
			return NULL;
		*hint = region;
	}
	*run = region->size - offset < length ? region->size - offset : length;
	return region->address + offset;
}

/* ---- loads: each is done exactly once */

static inline uint16_t load16(const void *from)
{
	return __atomic_load_n((const uint16_t *)from, __ATOMIC_RELAXED);
}

static inline uint16_t load16_acquire(const void *from)
{
	return __atomic_load_n((const uint16_t *)from, __ATOMIC_ACQUIRE);
}

/* An indirect table may lie at any address, an entry of the used ring at any multiple of 4. */
typedef uint64_t __attribute__((aligned(1), may_alias)) loose64;

static inline uint64_t load64(const void *from)
{
	return *(const volatile loose64 *)from;
}

/* ---- stores: nothing else in the data plane writes to guest memory */

static inline void memory_mark(const struct guest_memory *memory, const void *address,
			       uint64_t length)
{
	const struct memory_region *region;
	uint64_t page, last;

	if (usually(!memory->dirty) || !length)
		return;
	region = memory_region_of(memory, address);
	if (!region)
		return;
	page = region->gpa + ((uintptr_t)address - (uintptr_t)region->address);
	last = (page + length - 1) / MEMORY_LOG_PAGE;
	for (page /= MEMORY_LOG_PAGE; page <= last && page / 8 < memory->dirty_bytes; page++)
		__atomic_fetch_or(&memory->dirty[page / 8], (uint8_t)(1 << page % 8),
				  __ATOMIC_RELAXED);
}

static inline void store8(const struct guest_memory *memory, void *to, uint8_t value)
{
	__atomic_store_n((uint8_t *)to, value, __ATOMIC_RELAXED);
	memory_mark(memory, to, 1);
}

static inline void store16(const struct guest_memory *memory, void *to, uint16_t value)
{
	__atomic_store_n((uint16_t *)to, value, __ATOMIC_RELAXED);
	memory_mark(memory, to, 2);
}

static inline void store16_release(const struct guest_memory *memory, void *to, uint16_t value)
{
	__atomic_store_n((uint16_t *)to, value, __ATOMIC_RELEASE);
	memory_mark(memory, to, 2);
}

static inline void store32(const struct guest_memory *memory, void *to, uint32_t value)
{
	__atomic_store_n((uint32_t *)to, value, __ATOMIC_RELAXED);
	memory_mark(memory, to, 4);
}

/* Two words at once; nobody looks at them before an index says that they are there. */
static inline void store32x2(const struct guest_memory *memory, void *to, uint32_t first,
			     uint32_t second)
{
	*(volatile loose64 *)to = first | (uint64_t)second << 32;
	memory_mark(memory, to, 8);
}

/* Copy into a chain's pieces, `skip` bytes from their start; return how much fitted. */
static inline size_t store_bytes(const struct guest_memory *memory, const struct iovec *pieces,
				 uint32_t count, size_t skip, const void *from, size_t length)
{
	const uint8_t *source = from;
	size_t done = 0;
	uint32_t i;

	for (i = 0; i < count && done < length; i++) {
		size_t room = pieces[i].iov_len;
		size_t here;

		if (skip >= room) {
			skip -= room;
			continue;
		}
		here = room - skip < length - done ? room - skip : length - done;
		memcpy((uint8_t *)pieces[i].iov_base + skip, source + done, here);
		memory_mark(memory, (uint8_t *)pieces[i].iov_base + skip, here);
		done += here;
		skip = 0;
	}
	return done;
}

/* Say of a chain's pieces that the kernel wrote their first `length` bytes. */
static inline void store_done_by_kernel(const struct guest_memory *memory,
					const struct iovec *pieces, uint32_t count, size_t length)
{
	uint32_t i;

	if (usually(!memory->dirty))
		return;
	for (i = 0; i < count && length; i++) {
		size_t here = pieces[i].iov_len < length ? pieces[i].iov_len : length;

		memory_mark(memory, pieces[i].iov_base, here);
		length -= here;
	}
}

/* Copy out of a chain's pieces, `skip` bytes from their start; return how much there was. */
static inline size_t load_bytes(const struct iovec *pieces, uint32_t count, size_t skip, void *to,
				size_t length)
{
	uint8_t *target = to;
	size_t done = 0;
	uint32_t i;

	for (i = 0; i < count && done < length; i++) {
		size_t room = pieces[i].iov_len;
		size_t here;

		if (skip >= room) {
			skip -= room;
			continue;
		}
		here = room - skip < length - done ? room - skip : length - done;
		memcpy(target + done, (const uint8_t *)pieces[i].iov_base + skip, here);
		/* No second look: what was copied is what is judged. */
		__asm__ volatile("" : : : "memory");
		done += here;
		skip = 0;
	}
	return done;
}

#endif
