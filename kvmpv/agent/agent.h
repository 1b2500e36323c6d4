/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The agent: runs commands for a peer at the other end of one byte stream, and
 * is a small guest's process 1. The protocol is docs/agent-protocol.md; all
 * numbers on the wire are little-endian, as this machine's are.
 */
#ifndef KVMPV_AGENT_H
#define KVMPV_AGENT_H

#define _GNU_SOURCE
#include <stdint.h>
#include <stddef.h>
#include <signal.h>
#include <poll.h>

#define PROTOCOL_MAJOR 1
#define PROTOCOL_MINOR 0

/* No NUL in it: it can never lie across a frame's header. */
#define MAGIC "\xffkvmpv agent 1\r\n"
#define MAGIC_SIZE 16
#define NONCE_SIZE 16

#define HEADER_SIZE 8
#define MAX_PAYLOAD 65536
#define MAX_SESSIONS 64
#define STDIN_WINDOW 65536
#define MAX_STRINGS 4096

enum frame_type {
	F_HELLO = 0x01,
	F_PING = 0x02,
	F_PONG = 0x03,
	F_ERROR = 0x04,
	F_POWER = 0x05,
	F_REFRESH = 0x06,
	F_RUN = 0x10,
	F_DATA = 0x11,
	F_EOF = 0x12,
	F_CREDIT = 0x13,
	F_SIGNAL = 0x14,
	F_RESIZE = 0x15,
	F_EXIT = 0x16,
	F_CLOSE = 0x17,
};

enum { S_IN, S_OUT, S_ERR, STREAMS };

enum { RUN_TTY = 1, RUN_SHELL = 2, RUN_POWEROFF = 4, RUN_NO_STDIN = 8, RUN_CLEAN_ENV = 16 };
#define RUN_KNOWN 31

enum { EXIT_CODE, EXIT_SIGNAL, EXIT_NOT_STARTED, EXIT_REFUSED, EXIT_CLOSED };
enum { ERR_PROTOCOL = 1, ERR_VERSION = 2 };
enum { POWER_OFF = 1, POWER_REBOOT = 2, POWER_HALT = 3 };

struct header {
	uint8_t type;
	uint8_t stream;
	uint16_t session;
	uint32_t length;
};

struct run {			/* the fixed part of F_RUN's payload */
	uint16_t flags;
	uint16_t columns;
	uint16_t rows;
	uint16_t argc;
	uint16_t envc;
	uint16_t reserved;
	uint32_t out_window;
	uint32_t err_window;
};

struct exit_status {		/* F_EXIT's payload; text may follow */
	uint32_t kind;
	uint32_t value;
};

/* link.c: the byte stream and its frames */
extern int link_gone;		/* the stream ended and was not to come back */
void link_open(const char *path);
void link_use(int fd);
int link_present(void);
int link_room(size_t payload);
size_t link_data_room(void);
uint8_t *link_reserve(void);
void link_commit(uint8_t stream, uint16_t session, size_t length);
void link_send(uint8_t type, uint8_t stream, uint16_t session, const void *payload, size_t length);
void link_poll(struct pollfd *slot);
void link_handle(short events);
int link_flushed(void);
int link_timeout(void);

/* session.c: one command and its streams */
int session_frame(const struct header *head, const uint8_t *payload);
void session_reset(void);
int sessions_poll(struct pollfd *slots);
void sessions_handle(const struct pollfd *slots, int count);
int sessions_timeout(void);
int session_reaped(int pid, int status);

/* command.c: starting one */
int spawn(const char *file, const char *const *argv, const char *const *env, const char *cwd,
	  const int fds[3], int tty);
int command_start(const struct run *run, const uint8_t *text, size_t length, int mine[STREAMS]);

/* live.c: folders that somebody else changes too */
void live_add(const char *path);
int live_refresh(const uint8_t *names, size_t length);
void live_sync(void);

/* root.c: another root file system */
int root_switch(const char *source, const char *type, int read_only, const char *init);

/* network.c, dhcp.c: a small guest's networks */
#define NETWORK_RESOLVER "/run/resolv.conf"	/* where resolv.conf is */
void network_start(void);
void network_resolver(const char *domain, const uint32_t *servers, int count);
int dhcp_start(const char *name, int index, const uint8_t mac[6], int ready);

/* init.c: process 1 */
extern int is_init;
extern int ends_machine;	/* is process 1, or may tell it */
extern int power_wanted;	/* POWER_*, 0 for none */
void init_mount(void);
void init_configure(void);
void init_start(void);
int init_reaped(int pid, int status);
int init_timeout(void);
void init_tick(void);
void power(int how);
long now_ms(void);

extern sigset_t signals_handled;
extern const char *const default_env[];

#endif
