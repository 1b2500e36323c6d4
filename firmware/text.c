/* Text: lines to the log, and the few string functions that are needed. */
#include <stdarg.h>
#include "guest.h"

u32 checks_passed, checks_failed;

void copy(void *to, const void *from, u64 length)
{
	u8 *out = to;
	const u8 *in = from;

	while (length--)
		*out++ = *in++;
}

u64 text_length(const char *text)
{
	u64 length = 0;

	while (text[length])
		length++;
	return length;
}

int text_equal(const char *a, const char *b, u64 length)
{
	while (length--)
		if (*a++ != *b++)
			return 0;
	return 1;
}

void log_text(const char *text, u64 length)
{
	hypercall(KVMPV_HC_LOG, address_of(text), length, 0);
}

struct line {
	u32 used;
	char text[250];
};

static void put(struct line *line, char c)
{
	if (line->used < sizeof(line->text))
		line->text[line->used++] = c;
}

static void put_number(struct line *line, u64 value, u32 base)
{
	char digits[20];
	u32 count = 0;

	do {
		digits[count++] = "0123456789abcdef"[value % base];
		value /= base;
	} while (value);
	while (count)
		put(line, digits[--count]);
}

static void put_argument(struct line *line, char kind, long value)
{
	const char *text;

	switch (kind) {
	case 's':
		for (text = (const char *)value; *text; text++)
			put(line, *text);
		break;
	case 'd':
		if (value < 0)
			put(line, '-');
		put_number(line, value < 0 ? -(u64)value : (u64)value, 10);
		break;
	case 'x':
		put_number(line, (u64)value, 16);
		break;
	case 'c':
		put(line, (char)value);
		break;
	}
}

/* All arguments are of the size of long. */
void say(const char *format, ...)
{
	struct line line;
	va_list arguments;

	line.used = 0;
	va_start(arguments, format);
	for (; *format; format++) {
		if (*format == '%')
			put_argument(&line, *++format, va_arg(arguments, long));
		else
			put(&line, *format);
	}
	va_end(arguments);
	put(&line, '\n');
	log_text(line.text, line.used);
}

long check(const char *name, long got, long wanted)
{
	if (got == wanted) {
		checks_passed++;
		say("ok %s", name);
	} else {
		checks_failed++;
		say("not ok %s got %d wanted %d", name, got, wanted);
	}
	return got;
}
