/* The log and the console ports: terminal and exec channel. */
#include "guest.h"

#define VECTOR	0x40

static u8 buffer[4096];

static u64 ram_end(void)
{
	const u8 *at = (const u8 *)start_info->memory;
	u64 end = 0;
	u32 i;

	for (i = 0; i < start_info->memory_count; i++, at += start_info->memory_size) {
		const struct kvmpv_memory_range *range = (const void *)at;

		if (range->type == KVMPV_MEMORY_RAM)
			end = range->address + range->length;
	}
	return end;
}

void command_log(void)
{
	static const char line[] = "a record of the log\n";
	u64 length = sizeof(line) - 1;

	check("log", hypercall(KVMPV_HC_LOG, address_of(line), length, 0), (long)length);
	check("log-empty", hypercall(KVMPV_HC_LOG, address_of(line), 0, 0), 0);
	check("log-too-long", hypercall(KVMPV_HC_LOG, 0x100000, KVMPV_MAX_BUFFER + 1, 0),
	      -KVMPV_EMSGSIZE);
	check("log-huge", hypercall(KVMPV_HC_LOG, 0x100000, ~0ul, 0), -KVMPV_EMSGSIZE);
	check("log-unmapped", hypercall(KVMPV_HC_LOG, 0xd0000000, 16, 0), -KVMPV_EFAULT);
	check("log-beyond", hypercall(KVMPV_HC_LOG, 1ul << 45, 16, 0), -KVMPV_EFAULT);
	check("log-wraps", hypercall(KVMPV_HC_LOG, ~0ul - 7, 16, 0), -KVMPV_EFAULT);
	check("log-last", hypercall(KVMPV_HC_LOG, ram_end() - 1, 1, 0), 1);
	check("log-leaves", hypercall(KVMPV_HC_LOG, ram_end() - 1, 2, 0), -KVMPV_EFAULT);
}

static long status(u32 port, struct kvmpv_port_status *record)
{
	record->version = KVMPV_PORT_STATUS_VERSION;
	record->size = sizeof(*record);
	return hypercall(KVMPV_HC_PORT_STATUS, port, address_of(record), 0);
}

static void check_status(void)
{
	struct kvmpv_port_status record = { .flags = 0xff00 };

	check("port-status", status(KVMPV_PORT_TERMINAL, &record), 0);
	check("port-status-flags", record.flags & ~7u, 0);
	check("port-status-exec", status(KVMPV_PORT_EXEC, &record), 0);
	check("port-status-enoent", status(KVMPV_MAX_PORTS, &record), -KVMPV_ENOENT);
	record.version = 2;
	check("port-status-version", hypercall(KVMPV_HC_PORT_STATUS, 0, address_of(&record), 0),
	      -KVMPV_EINVAL);
	record.version = KVMPV_PORT_STATUS_VERSION;
	record.size = 8;
	check("port-status-size", hypercall(KVMPV_HC_PORT_STATUS, 0, address_of(&record), 0),
	      -KVMPV_EINVAL);
	check("port-status-efault", hypercall(KVMPV_HC_PORT_STATUS, 0, 0xd0000000, 0),
	      -KVMPV_EFAULT);
}

static void check_buffers(const char *name, u64 call)
{
	check(name, hypercall(call, 0, 0xd0000000, 16), -KVMPV_EFAULT);
	check(name, hypercall(call, 0, ~0ul - 7, 16), -KVMPV_EFAULT);
	check(name, hypercall(call, 0, address_of(buffer), KVMPV_MAX_BUFFER + 1), -KVMPV_EMSGSIZE);
	check(name, hypercall(call, KVMPV_MAX_PORTS, address_of(buffer), 1), -KVMPV_ENOENT);
	check(name, hypercall(call, ~0ul, address_of(buffer), 1), -KVMPV_ENOENT);
	check(name, hypercall(call, 1ul << 32, address_of(buffer), 1), -KVMPV_ENOENT);
	check(name, hypercall(call, 0, address_of(buffer), 0), 0);
}

void command_ports(void)
{
	static const char text[] = "written to the terminal\n";

	check("port-write", hypercall(KVMPV_HC_PORT_WRITE, KVMPV_PORT_TERMINAL, address_of(text),
	      sizeof(text) - 1), sizeof(text) - 1);
	check_buffers("port-write-bad", KVMPV_HC_PORT_WRITE);
	check_buffers("port-read-bad", KVMPV_HC_PORT_READ);
	check_status();
	check("port-bind-enoent", hypercall(KVMPV_HC_PORT_BIND, KVMPV_MAX_PORTS, 0, 0),
	      -KVMPV_ENOENT);
	check("port-bind-channel", hypercall(KVMPV_HC_PORT_BIND, 0, 77, 0), -KVMPV_ENOENT);
	check("port-bind-none", hypercall(KVMPV_HC_PORT_BIND, 0, KVMPV_NO_CHANNEL, 0), 0);
	check("port-close-enoent", hypercall(KVMPV_HC_PORT_CLOSE, KVMPV_MAX_PORTS, 0, 0),
	      -KVMPV_ENOENT);
}

/* Writes all of it; sleeps until the port's next event where there is no room. */
static long write_all(u32 port, const u8 *data, u64 length)
{
	while (length) {
		u32 seen = interrupts_seen[VECTOR];
		long result = hypercall(KVMPV_HC_PORT_WRITE, port, address_of(data), length);

		if (result == -KVMPV_EAGAIN) {
			if (wait_for(&interrupts_seen[VECTOR], seen + 1))
				return -KVMPV_EAGAIN;
			continue;
		}
		if (result <= 0)
			return result;
		data += result;
		length -= (u64)result;
	}
	return 0;
}

/* Sends back what it reads, until the end of file, and tells of new window sizes. */
static void echo(u32 port)
{
	long channel = hypercall(KVMPV_HC_EVTCHN_ALLOC, 0, 0, 0), result;
	u16 columns = 0, rows = 0;
	struct kvmpv_port_status record;
	u64 total = 0;

	apic_init();
	check("echo-bind", bind_channel((u32)channel, 0, VECTOR), 0);
	check("echo-port-bind", hypercall(KVMPV_HC_PORT_BIND, port, (u64)channel, 0), 0);
	for (;;) {
		u32 seen = interrupts_seen[VECTOR];

		result = hypercall(KVMPV_HC_PORT_READ, port, address_of(buffer), sizeof(buffer));
		if (result > 0 && !write_all(port, buffer, (u64)result)) {
			total += (u64)result;
			continue;
		}
		if (result != -KVMPV_EAGAIN)
			break;
		if (!status(port, &record) && (record.columns != columns || record.rows != rows)) {
			columns = record.columns;
			rows = record.rows;
			say("window %d %d", (u64)columns, (u64)rows);
		}
		while (wait_for(&interrupts_seen[VECTOR], seen + 1))
			;
	}
	check("echo-end", result, 0);
	say("echo %d bytes", total);
	check("echo-close", hypercall(KVMPV_HC_PORT_CLOSE, port, 0, 0), 0);
	check("echo-after-close", hypercall(KVMPV_HC_PORT_WRITE, port, address_of(buffer), 1),
	      -KVMPV_EPIPE);
}

void command_echo(void)
{
	echo(KVMPV_PORT_TERMINAL);
}

void command_exec(void)
{
	echo(KVMPV_PORT_EXEC);
}
