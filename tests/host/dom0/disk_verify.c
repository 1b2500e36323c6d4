/* SPDX-License-Identifier: MIT */
/*
 * Write to a disk and read back, for as long as it takes: disk_verify DEVICE STOP.
 * A few processes with blocks of their own write stamped blocks past the cache, read
 * others of theirs back, and flush now and then, until the file STOP is there;
 * then each looks at all its blocks. Prints one line a process.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define PROCESSES 8
#define BLOCKS 64
#define BLOCK 4096

static uint64_t *buffer;
static uint32_t stamps[BLOCKS];
static int fd, number;

static void fail(const char *what, unsigned block)
{
	printf("process %d: %s of block %u: %s\n", number, what, block, strerror(errno));
	exit(1);
}

static uint64_t word(unsigned block, unsigned i)
{
	return ((uint64_t)stamps[block] << 32 | (unsigned)number << 24 | block << 12) ^ i;
}

static off_t place(unsigned block)
{
	return ((off_t)number * BLOCKS + block) * BLOCK;
}

static void check(unsigned block)
{
	unsigned i;

	if (pread(fd, buffer, BLOCK, place(block)) != BLOCK)
		fail("read", block);
	for (i = 0; i < BLOCK / 8; i++) {
		if (buffer[i] != (stamps[block] ? word(block, i) : 0)) {
			errno = EBADMSG;
			fail("verify", block);
		}
	}
}

static void change(unsigned block, uint32_t stamp)
{
	unsigned i;

	stamps[block] = stamp;
	for (i = 0; i < BLOCK / 8; i++)
		buffer[i] = word(block, i);
	if (pwrite(fd, buffer, BLOCK, place(block)) != BLOCK)
		fail("write", block);
}

static void work(const char *stop)
{
	uint32_t turn, block;

	srand(number);
	for (turn = 1; turn % 16 || access(stop, F_OK); turn++) {
		change(rand() % BLOCKS, turn);
		check(rand() % BLOCKS);
		if (turn % 32 == 0 && fdatasync(fd))
			fail("flush", turn);
	}
	for (block = 0; block < BLOCKS; block++)
		check(block);
	printf("process %d: good\n", number);
}

int main(int argc, char **argv)
{
	int status, bad = 0;

	if (argc != 3 || posix_memalign((void **)&buffer, BLOCK, BLOCK))
		return 2;
	fd = open(argv[1], O_RDWR | O_DIRECT);
	if (fd < 0) {
		perror(argv[1]);
		return 2;
	}
	for (number = 0; number < PROCESSES; number++) {
		if (!fork()) {
			work(argv[2]);
			return 0;
		}
	}
	while (wait(&status) > 0)
		bad |= status;
	return bad ? 1 : 0;
}
