/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The byte stream and its frames. Memory is bounded: one buffer each way, and
 * a frame is parsed only while the largest answer to it has room.
 */
#include "agent.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define IN_SIZE (HEADER_SIZE + MAX_PAYLOAD + MAGIC_SIZE + NONCE_SIZE)
#define OUT_SIZE (128 * 1024)
#define OUT_RESERVE 8192	/* for control frames only */
#define DATA_CHUNK (32 * 1024 - HEADER_SIZE)
#define ANSWER_ROOM 256		/* the largest answer to one frame */
#define REOPEN_MS 200

int link_gone;

static int link_fd = -1;
static int reopens;		/* a device: its peer may come back */
static int absent;		/* the device says that nobody is there */
static int synced;
static uint8_t in[IN_SIZE], out[OUT_SIZE];
static size_t in_len, in_scanned, out_start, out_end;

void link_use(int fd)
{
	link_fd = fd;
	fcntl(fd, F_SETFL, O_NONBLOCK);
}

void link_open(const char *path)
{
	reopens = 1;
	link_fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
}

int link_present(void)
{
	return link_fd >= 0;
}

/* ---- Out ---- */

static size_t out_free(void)
{
	return OUT_SIZE - (out_end - out_start);
}

int link_flushed(void)
{
	return out_start == out_end || absent || link_fd < 0;
}

int link_room(size_t payload)
{
	return out_free() >= HEADER_SIZE + payload;
}

/* Returns how much a data frame may hold now, 0 for none. */
size_t link_data_room(void)
{
	size_t room = out_free();

	if (!synced || room < OUT_RESERVE + HEADER_SIZE + 1)
		return 0;
	room -= OUT_RESERVE + HEADER_SIZE;
	return room < DATA_CHUNK ? room : DATA_CHUNK;
}

static void out_compact(size_t need)
{
	if (OUT_SIZE - out_end >= need)
		return;
	memmove(out, out + out_start, out_end - out_start);
	out_end -= out_start;
	out_start = 0;
}

/* Where link_data_room() bytes may be written, to be sent by link_commit(). */
uint8_t *link_reserve(void)
{
	out_compact(HEADER_SIZE + DATA_CHUNK);
	return out + out_end + HEADER_SIZE;
}

void link_commit(uint8_t stream, uint16_t session, size_t length)
{
	struct header head = { F_DATA, stream, session, (uint32_t)length };

	memcpy(out + out_end, &head, HEADER_SIZE);
	out_end += HEADER_SIZE + length;
}

void link_send(uint8_t type, uint8_t stream, uint16_t session, const void *payload, size_t length)
{
	struct header head = { type, stream, session, (uint32_t)length };

	if (!synced || !link_room(length))
		return;
	out_compact(HEADER_SIZE + length);
	memcpy(out + out_end, &head, HEADER_SIZE);
	if (length)
		memcpy(out + out_end + HEADER_SIZE, payload, length);
	out_end += HEADER_SIZE + length;
}

static void lost(void)
{
	session_reset();
	synced = 0;
	in_len = in_scanned = out_start = out_end = 0;
	if (reopens) {
		absent = 1;
		return;
	}
	link_gone = 1;
	close(link_fd);
	link_fd = -1;
}

static void flush(void)
{
	while (out_start < out_end && link_fd >= 0) {
		ssize_t n = write(link_fd, out + out_start, out_end - out_start);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno != EAGAIN)
			lost();
		if (n <= 0)
			return;
		out_start += (size_t)n;
	}
	out_start = out_end = 0;
}

/* ---- In ---- */

static void fail(uint32_t code, const char *text)
{
	uint8_t payload[64];
	size_t length = strlen(text);

	memcpy(payload, &code, 4);
	memcpy(payload + 4, text, length);
	link_send(F_ERROR, 0, 0, payload, 4 + length);
	session_reset();
	synced = 0;
}

static void greet(const uint8_t *nonce)
{
	struct { uint16_t major, minor; uint32_t features, max_payload, max_sessions; } hello = {
		PROTOCOL_MAJOR, PROTOCOL_MINOR, (uint32_t)ends_machine, MAX_PAYLOAD, MAX_SESSIONS,
	};

	session_reset();
	out_start = 0;
	memcpy(out, MAGIC, MAGIC_SIZE);
	memcpy(out + MAGIC_SIZE, nonce, NONCE_SIZE);
	out_end = MAGIC_SIZE + NONCE_SIZE;
	synced = 1;
	link_send(F_HELLO, 0, 0, &hello, sizeof(hello));
}

static int connection_frame(const struct header *head, const uint8_t *payload)
{
	uint16_t major;

	switch (head->type) {
	case F_HELLO:
		if (head->length < 4)
			return -1;
		memcpy(&major, payload, 2);
		if (major != PROTOCOL_MAJOR)
			fail(ERR_VERSION, "this agent speaks version 1 only");
		return 0;
	case F_PING:
		if (head->length > 64)
			return -1;
		link_send(F_PONG, 0, 0, payload, head->length);
		return 0;
	case F_PONG:
		return 0;
	case F_REFRESH:
		return live_refresh(payload, head->length);
	case F_POWER:
		if (head->length < 1 || payload[0] < POWER_OFF || payload[0] > POWER_HALT)
			return -1;
		if (ends_machine)
			power_wanted = payload[0];
		return 0;
	default:
		return -1;
	}
}

static void consume(size_t count)
{
	in_len -= count;
	memmove(in, in + count, in_len);
	in_scanned = in_scanned > count ? in_scanned - count : 0;
}

/* Looks for a new peer's greeting; returns 0 when it is there but not whole. */
static int find_magic(void)
{
	size_t from = in_scanned > MAGIC_SIZE - 1 ? in_scanned - (MAGIC_SIZE - 1) : 0;
	uint8_t *hit = memmem(in + from, in_len - from, MAGIC, MAGIC_SIZE);

	in_scanned = in_len;
	if (!hit)
		return 1;
	consume((size_t)(hit - in));
	in_scanned = 0;
	if (in_len < MAGIC_SIZE + NONCE_SIZE)
		return 0;
	greet(in + MAGIC_SIZE);
	consume(MAGIC_SIZE + NONCE_SIZE);
	return find_magic();
}

/* Handles the first frame; returns its size, 0 if it is not whole or must wait. */
static size_t one_frame(const uint8_t *at, size_t length)
{
	struct header head;
	int good;

	if (length < HEADER_SIZE || !link_room(ANSWER_ROOM))
		return 0;
	memcpy(&head, at, HEADER_SIZE);
	if (head.length > MAX_PAYLOAD) {
		fail(ERR_PROTOCOL, "a frame is too long");
		return 0;
	}
	if (length < HEADER_SIZE + head.length)
		return 0;
	if (head.session == 0)
		good = connection_frame(&head, at + HEADER_SIZE) == 0;
	else
		good = session_frame(&head, at + HEADER_SIZE) == 0;
	if (!good)
		fail(ERR_PROTOCOL, "a frame makes no sense");
	return HEADER_SIZE + head.length;
}

static void parse(void)
{
	size_t done = 0, size;

	if (!find_magic())
		return;
	while (synced && (size = one_frame(in + done, in_len - done)))
		done += size;
	if (synced)
		consume(done);
	else if (in_len > MAGIC_SIZE - 1)	/* keep what may begin a greeting */
		consume(in_len - (MAGIC_SIZE - 1));
}

static void fill(void)
{
	while (in_len < IN_SIZE && link_fd >= 0) {
		ssize_t n = read(link_fd, in + in_len, IN_SIZE - in_len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			absent = 0;
		else if (n <= 0)
			lost();
		if (n <= 0)
			return;
		absent = 0;
		in_len += (size_t)n;
		parse();
		if (!link_room(ANSWER_ROOM))
			return;
	}
}

/* ---- The event loop's side ---- */

void link_poll(struct pollfd *slot)
{
	slot->fd = absent ? -1 : link_fd;
	slot->events = (short)((in_len < IN_SIZE ? POLLIN : 0) |
			       (out_start < out_end ? POLLOUT : 0));
	slot->revents = 0;
}

void link_handle(short events)
{
	if (link_fd < 0)
		return;
	if (in_len)			/* it may have waited for room */
		parse();
	if (absent || events & (POLLIN | POLLHUP | POLLERR))
		fill();
	flush();
	if (in_len) {
		parse();
		flush();
	}
}

/* How long the loop may sleep for the link's sake. */
int link_timeout(void)
{
	return absent ? REOPEN_MS : -1;
}
