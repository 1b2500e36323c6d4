/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Sessions: one command each, with its streams. Nothing here is queued without
 * a bound: output is read from the command only while the peer has granted
 * credit and the link has room, and standard input is held up to its window.
 */
#include "agent.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define GRACE_MS 1000		/* between SIGHUP and SIGKILL for a dropped command */
#define DRAIN_LIMIT (256 * 1024) /* read for a peer that is gone, per turn */

enum state { FREE, RUNNING, EXITED };

struct session {
	enum state state;
	uint16_t id;		/* 0: its peer has dropped it */
	uint16_t flags;
	int pid;
	int fd[STREAMS];	/* our ends; -1 when closed */
	uint32_t credit[STREAMS];
	uint8_t *held;		/* standard input on its way */
	uint32_t held_start, held_len;
	uint32_t owed;		/* credit for standard input, to be granted */
	uint8_t in_ended;	/* the peer has sent its end of file */
	uint8_t eof_owed[STREAMS];
	long kill_at;		/* 0: never */
	struct exit_status status;
};

static struct session table[MAX_SESSIONS];

static struct session *find(uint16_t id)
{
	for (int i = 0; i < MAX_SESSIONS; i++)
		if (table[i].state != FREE && table[i].id == id)
			return &table[i];
	return NULL;
}

static void close_stream(struct session *s, int stream)
{
	int fd = s->fd[stream];

	if (fd < 0)
		return;
	s->fd[stream] = -1;
	for (int i = 0; i < STREAMS; i++)	/* a pty is one fd for two streams */
		if (s->fd[i] == fd)
			return;
	close(fd);
}

static void release(struct session *s)
{
	for (int i = 0; i < STREAMS; i++)
		close_stream(s, i);
	free(s->held);
	s->held = NULL;
	s->state = FREE;
}

static void signal_session(struct session *s, int signal)
{
	pid_t group = s->pid;

	if (s->state != RUNNING)
		return;
	if (s->flags & RUN_TTY && s->fd[S_OUT] >= 0) {
		pid_t foreground = tcgetpgrp(s->fd[S_OUT]);

		if (foreground > 0)
			group = foreground;
	}
	if (kill(-group, signal) < 0)
		kill(s->pid, signal);
}

static void drop(struct session *s)
{
	s->id = 0;
	close_stream(s, S_IN);
	if (s->state != RUNNING)
		return;
	signal_session(s, SIGHUP);
	signal_session(s, SIGCONT);
	s->kill_at = now_ms() + GRACE_MS;
}

/* Drops every command: their peer is gone. */
void session_reset(void)
{
	for (int i = 0; i < MAX_SESSIONS; i++)
		if (table[i].state != FREE && table[i].id)
			drop(&table[i]);
}

/* ---- Starting a command ---- */

static void refuse(uint16_t id, uint32_t kind, int error)
{
	struct exit_status status = { kind, (uint32_t)error };

	link_send(F_EXIT, 0, id, &status, sizeof(status));
}

static int run_frame(const struct header *head, const uint8_t *payload)
{
	struct run run;
	struct session *s = NULL;
	int pid;

	if (head->length < sizeof(run) || find(head->session))
		return -1;
	memcpy(&run, payload, sizeof(run));
	if (run.flags & ~RUN_KNOWN)
		return -1;
	for (int i = 0; i < MAX_SESSIONS && !s; i++)
		if (table[i].state == FREE)
			s = &table[i];
	if (!s) {
		refuse(head->session, EXIT_REFUSED, EAGAIN);
		return 0;
	}
	memset(s, 0, sizeof(*s));
	s->fd[S_IN] = s->fd[S_OUT] = s->fd[S_ERR] = -1;
	pid = command_start(&run, payload + sizeof(run), head->length - sizeof(run), s->fd);
	if (pid < 0) {
		release(s);
		if (pid == -EPROTO)
			return -1;
		refuse(head->session, EXIT_NOT_STARTED, -pid);
		if (run.flags & RUN_POWEROFF && ends_machine)
			power_wanted = POWER_OFF;
		return 0;
	}
	s->state = RUNNING;
	s->id = head->session;
	s->flags = run.flags;
	s->pid = pid;
	s->credit[S_OUT] = run.out_window;
	s->credit[S_ERR] = run.err_window;
	s->owed = s->fd[S_IN] >= 0 ? STDIN_WINDOW : 0;
	return 0;
}

/* ---- Frames for a running command ---- */

static void feed(struct session *s)
{
	while (s->held_len && s->fd[S_IN] >= 0) {
		ssize_t n = write(s->fd[S_IN], s->held + s->held_start, s->held_len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		if (n < 0) {	/* nobody reads it any more */
			close_stream(s, S_IN);
			s->eof_owed[S_IN] = 1;
			break;
		}
		s->held_start += (uint32_t)n;
		s->held_len -= (uint32_t)n;
		s->owed += (uint32_t)n;
	}
	if (!s->held_len || s->fd[S_IN] < 0)
		s->held_start = s->held_len = 0;
	if (s->in_ended && !s->held_len && s->fd[S_IN] >= 0 && !(s->flags & RUN_TTY))
		close_stream(s, S_IN);
}

static int data_frame(struct session *s, const struct header *head, const uint8_t *payload)
{
	if (head->stream != S_IN || s->in_ended || head->length > s->credit[S_IN])
		return -1;
	s->credit[S_IN] -= head->length;
	if (s->fd[S_IN] < 0)
		return 0;
	if (!s->held && !(s->held = malloc(STDIN_WINDOW)))
		return -1;
	if (s->held_start) {
		memmove(s->held, s->held + s->held_start, s->held_len);
		s->held_start = 0;
	}
	memcpy(s->held + s->held_len, payload, head->length);
	s->held_len += head->length;
	feed(s);
	return 0;
}

static int eof_frame(struct session *s, const struct header *head)
{
	static const uint8_t end_of_file = 4;

	if (head->stream >= STREAMS || head->length || (head->stream == S_IN && s->in_ended))
		return -1;
	if (head->stream != S_IN) {	/* the peer reads no more of it: SIGPIPE is due */
		close_stream(s, head->stream);
		return 0;
	}
	s->in_ended = 1;
	if (s->flags & RUN_TTY && s->fd[S_IN] >= 0 && s->held_len < STDIN_WINDOW) {
		if (!s->held && !(s->held = malloc(STDIN_WINDOW)))
			return -1;
		if (s->held_start + s->held_len < STDIN_WINDOW)
			s->held[s->held_start + s->held_len++] = end_of_file;
	}
	feed(s);
	return 0;
}

static int credit_frame(struct session *s, const struct header *head, const uint8_t *payload)
{
	uint32_t more;

	if (head->length != 4 || (head->stream != S_OUT && head->stream != S_ERR))
		return -1;
	memcpy(&more, payload, 4);
	if (__builtin_add_overflow(s->credit[head->stream], more, &s->credit[head->stream]))
		return -1;
	return 0;
}

static int small_frame(struct session *s, const struct header *head, const uint8_t *payload)
{
	uint32_t number;
	uint16_t size[2];
	struct winsize window = { 0 };

	if (head->length != 4)
		return -1;
	memcpy(&number, payload, 4);
	memcpy(size, payload, 4);
	if (head->type == F_SIGNAL) {
		if (number < 1 || number > 64)
			return -1;
		signal_session(s, (int)number);
	} else if (s->flags & RUN_TTY && s->fd[S_OUT] >= 0) {
		window.ws_col = size[0];
		window.ws_row = size[1];
		ioctl(s->fd[S_OUT], TIOCSWINSZ, &window);
	}
	return 0;
}

/* Returns -1 if the frame breaks the protocol. */
int session_frame(const struct header *head, const uint8_t *payload)
{
	struct session *s;

	if (head->type == F_RUN)
		return run_frame(head, payload);
	s = find(head->session);
	if (!s)		/* it has just ended: the peer could not know */
		return head->type >= F_DATA && head->type <= F_CLOSE ? 0 : -1;
	switch (head->type) {
	case F_DATA:
		return data_frame(s, head, payload);
	case F_EOF:
		return eof_frame(s, head);
	case F_CREDIT:
		return credit_frame(s, head, payload);
	case F_SIGNAL:
	case F_RESIZE:
		return small_frame(s, head, payload);
	case F_CLOSE:	/* answered at once: the number is free again */
		drop(s);
		refuse(head->session, EXIT_CLOSED, 0);
		return 0;
	default:
		return -1;
	}
}

/* ---- The event loop's side ---- */

static void stream_ended(struct session *s, int stream)
{
	close_stream(s, stream);
	s->eof_owed[stream] = 1;
}

/* Reads what a dropped command still writes, so that it need not wait for us. */
static void discard(struct session *s, int stream)
{
	static uint8_t sink[4096];
	size_t total = 0;
	ssize_t n;

	while (total < DRAIN_LIMIT && (n = read(s->fd[stream], sink, sizeof(sink))) > 0)
		total += (size_t)n;
	if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR) || s->state == EXITED)
		close_stream(s, stream);
}

/* Moves one chunk of output; returns 1 if more may be there to move now. */
static int collect(struct session *s, int stream)
{
	size_t room = link_data_room();
	ssize_t n;

	if (s->fd[stream] < 0)
		return 0;
	if (!s->id) {
		discard(s, stream);
		return 0;
	}
	if (room > s->credit[stream])
		room = s->credit[stream];
	if (!room)
		return 0;
	n = read(s->fd[stream], link_reserve(), room);
	if (n > 0) {
		link_commit((uint8_t)stream, s->id, (size_t)n);
		s->credit[stream] -= (uint32_t)n;
		return 1;
	}
	if (n < 0 && errno == EINTR)
		return 1;
	/* Empty: when the command has ended, only what outlived it could write more. */
	if (n == 0 || errno != EAGAIN || s->state == EXITED)
		stream_ended(s, stream);
	return 0;
}

static void announce(struct session *s)
{
	for (int i = 0; i < STREAMS; i++) {
		if (!s->eof_owed[i] || !link_room(0))
			continue;
		s->eof_owed[i] = 0;
		if (s->id)
			link_send(F_EOF, (uint8_t)i, s->id, NULL, 0);
	}
	if (s->owed && s->id && link_room(4)) {
		link_send(F_CREDIT, S_IN, s->id, &s->owed, 4);
		s->credit[S_IN] += s->owed;
		s->owed = 0;
	}
}

static void finish(struct session *s)
{
	if (s->state != EXITED || s->fd[S_OUT] >= 0 || s->fd[S_ERR] >= 0 ||
	    s->eof_owed[S_OUT] || s->eof_owed[S_ERR] || !link_room(sizeof(s->status)))
		return;
	if (s->id)
		link_send(F_EXIT, 0, s->id, &s->status, sizeof(s->status));
	if (s->id && s->flags & RUN_POWEROFF && ends_machine)
		power_wanted = POWER_OFF;
	release(s);
}

int sessions_poll(struct pollfd *slots)
{
	int count = 0, room = link_data_room() > 0;

	for (int i = 0; i < MAX_SESSIONS; i++) {
		struct session *s = &table[i];

		if (s->state == FREE)
			continue;
		if (s->held_len && s->fd[S_IN] >= 0)
			slots[count++] = (struct pollfd){ s->fd[S_IN], POLLOUT, 0 };
		for (int j = S_OUT; j < STREAMS; j++)
			if (s->fd[j] >= 0 && (!s->id || (room && s->credit[j])))
				slots[count++] = (struct pollfd){ s->fd[j], POLLIN, 0 };
	}
	return count;
}

static short events_of(const struct pollfd *slots, int count, int fd, short wanted)
{
	for (int i = 0; i < count; i++)
		if (slots[i].fd == fd && slots[i].events & wanted)
			return slots[i].revents;
	return 0;
}

static void turn(struct session *s, const struct pollfd *slots, int count)
{
	if (s->kill_at && s->state == RUNNING && now_ms() >= s->kill_at) {
		kill(-s->pid, SIGKILL);
		kill(s->pid, SIGKILL);
		s->kill_at = 0;
	}
	if (s->held_len || s->in_ended)
		feed(s);
	for (int j = S_OUT; j < STREAMS; j++)
		if (s->state == EXITED)
			while (collect(s, j))
				;
		else if (s->fd[j] >= 0 && events_of(slots, count, s->fd[j], POLLIN))
			collect(s, j);
	announce(s);
	finish(s);
}

void sessions_handle(const struct pollfd *slots, int count)
{
	static int first;	/* turns begin with another session each time: fair */

	first = (first + 1) % MAX_SESSIONS;
	for (int i = 0; i < MAX_SESSIONS; i++) {
		struct session *s = &table[(first + i) % MAX_SESSIONS];

		if (s->state != FREE)
			turn(s, slots, count);
	}
}

int sessions_timeout(void)
{
	long least = -1, now = 0;

	for (int i = 0; i < MAX_SESSIONS; i++) {
		if (table[i].state != RUNNING || !table[i].kill_at)
			continue;
		if (!now)
			now = now_ms();
		long left = table[i].kill_at > now ? table[i].kill_at - now : 0;
		if (least < 0 || left < least)
			least = left;
	}
	return (int)least;
}

int session_reaped(int pid, int status)
{
	for (int i = 0; i < MAX_SESSIONS; i++) {
		struct session *s = &table[i];

		if (s->state != RUNNING || s->pid != pid)
			continue;
		s->state = EXITED;
		close_stream(s, S_IN);
		s->held_len = 0;
		live_sync();
		s->status.kind = WIFSIGNALED(status) ? EXIT_SIGNAL : EXIT_CODE;
		s->status.value = (uint32_t)(WIFSIGNALED(status) ? WTERMSIG(status) :
					     WEXITSTATUS(status));
		return 1;
	}
	return 0;
}
