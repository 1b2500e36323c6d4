/* From the boot state to the commands that the command line names. */
#include "guest.h"

const struct kvmpv_start_info *start_info;
const u8 *boot_params;
u32 gate_port;

static const char *command_line;

static const struct {
	const char *name;
	void (*run)(void);
	int in_all;		/* "all" runs it: it needs nobody outside, and comes back */
} commands[] = {
	{ "discovery", command_discovery, 1 },
	{ "startinfo", command_startinfo, 1 },
	{ "version", command_version, 1 },
	{ "log", command_log, 1 },
	{ "ports", command_ports, 1 },
	{ "events", command_events, 1 },
	{ "channels", command_channels, 1 },
	{ "clock", command_clock, 1 },
	{ "vcpus", command_vcpus, 1 },
	{ "badcalls", command_badcalls, 1 },
	{ "absent", command_absent, 1 },
	{ "preserved", command_preserved, 1 },
	{ "usermode", command_usermode, 1 },
	{ "compat", command_compat, 1 },
	{ "virtio", command_virtio, 1 },
	{ "again", command_again, 0 },
	{ "badrings", command_badrings, 0 },
	{ "bench", command_bench, 0 },
	{ "bindstorm", command_bindstorm, 0 },
	{ "crash", command_crash, 0 },
	{ "disk", command_disk, 0 },
	{ "echo", command_echo, 0 },
	{ "exec", command_exec, 0 },
	{ "flood", command_flood, 0 },
	{ "halt", command_halt, 0 },
	{ "jump", command_jump, 0 },
	{ "junk", command_junk, 0 },
	{ "msrs", command_msrs, 0 },
	{ "nmi", command_nmi, 0 },
	{ "poweroff", power_off, 0 },
	{ "race", command_race, 0 },
	{ "reboot", command_reboot, 0 },
	{ "requests", command_requests, 0 },
	{ "resets", command_resets, 0 },
	{ "sendstorm", command_sendstorm, 0 },
	{ "spin", command_spin, 0 },
	{ "triple", command_triple, 0 },
	{ "upstorm", command_upstorm, 0 },
	{ "userspin", command_userspin, 0 },
	{ "watchdisk", command_watchdisk, 0 },
};

#define COMMANDS (sizeof(commands) / sizeof(commands[0]))

void power_off(void)
{
	for (;;)
		hypercall(KVMPV_HC_POWEROFF, 0, 0, 0);
}

const char *option_text(const char *key)
{
	u64 length = text_length(key);
	const char *at = command_line;

	for (; *at; at++) {
		if (at != command_line && at[-1] != ' ')
			continue;
		if (text_equal(at, key, length) && at[length] == '=')
			return at + length + 1;
	}
	return 0;
}

u64 option(const char *key, u64 standard)
{
	const char *text = option_text(key);
	u64 value = 0, base = 10;

	if (!text)
		return standard;
	if (text[0] == '0' && text[1] == 'x') {
		base = 16;
		text += 2;
	}
	for (;; text++) {
		char c = *text;

		if (c >= '0' && c <= '9')
			value = value * base + (u64)(c - '0');
		else if (base == 16 && c >= 'a' && c <= 'f')
			value = value * base + (u64)(c - 'a' + 10);
		else
			return value;
	}
}

static int is_word(const char *text, const char *word)
{
	u64 length = text_length(word);
	char end;

	if (!text_equal(text, word, length))
		return 0;
	end = text[length];
	return end == ',' || end == ' ' || end == '\0';
}

static void run_word(const char *word)
{
	int all = is_word(word, "all"), known = all;
	u32 i;

	for (i = 0; i < COMMANDS; i++) {
		if (all ? !commands[i].in_all : !is_word(word, commands[i].name))
			continue;
		known = 1;
		commands[i].run();
	}
	if (!known) {
		checks_failed++;
		say("not ok unknown command");
	}
}

static void find_gate(void)
{
	u32 out[4];

	cpuid(KVMPV_CPUID_FEATURES, out);
	gate_port = out[3] >> 16;
}

void guest_main(u64 info, u64 params)
{
	const char *word;

	start_info = (const void *)info;
	boot_params = (const void *)params;
	command_line = (const char *)start_info->cmdline;
	find_gate();
	word = option_text("test");
	if (!word)
		word = "all";
	interrupts_init();
	for (;;) {
		run_word(word);
		while (*word && *word != ' ' && *word != ',')
			word++;
		if (*word++ != ',')
			break;
	}
	say("done %d ok %d not ok", (long)checks_passed, (long)checks_failed);
	power_off();
}
