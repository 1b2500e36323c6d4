"""The frames of the agent protocol, version 1: docs/agent-protocol.md says what they mean."""

from __future__ import annotations

import struct

from kvmpv.errors import AgentError, BadInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

VERSION_MAJOR: Final = 1
VERSION_MINOR: Final = 0

# No NUL in it: every header ends in one, so it can lie inside one payload only.
MAGIC: Final = b"\xffkvmpv agent 1\r\n"
NONCE_SIZE: Final = 16
GREETING_SIZE: Final = 32

MAX_PAYLOAD: Final = 65536
HEADER_SIZE: Final = 8

HELLO: Final = 0x01
PING: Final = 0x02
PONG: Final = 0x03
ERROR: Final = 0x04
POWER: Final = 0x05
REFRESH: Final = 0x06
RUN: Final = 0x10
DATA: Final = 0x11
EOF: Final = 0x12
CREDIT: Final = 0x13
SIGNAL: Final = 0x14
RESIZE: Final = 0x15
EXIT: Final = 0x16
CLOSE: Final = 0x17
RELAY: Final = 0x30

STDIN: Final = 0
STDOUT: Final = 1
STDERR: Final = 2

RUN_TTY: Final = 1
RUN_SHELL: Final = 2
RUN_POWEROFF: Final = 4
RUN_NO_STDIN: Final = 8
RUN_CLEAN_ENV: Final = 16

EXIT_CODE: Final = 0
EXIT_SIGNAL: Final = 1
EXIT_NOT_STARTED: Final = 2
EXIT_REFUSED: Final = 3
EXIT_CLOSED: Final = 4

ERROR_PROTOCOL: Final = 1
ERROR_VERSION: Final = 2
ERROR_LOST: Final = 3

POWER_OFF: Final = 1
POWER_REBOOT: Final = 2
POWER_HALT: Final = 3

_HEADER = struct.Struct("<BBHI")
_RUN = struct.Struct("<HHHHHHII")
_HELLO = struct.Struct("<HHIII")
_PAIR = struct.Struct("<II")
_WORD = struct.Struct("<I")
_SIZE = struct.Struct("<HH")


def pack(kind: int, session: int = 0, payload: bytes = b"", stream: int = 0) -> bytes:
    """Return one frame."""
    return _HEADER.pack(kind, stream, session, len(payload)) + payload


def pack_data(session: int, stream: int, data: bytes) -> bytes:
    """Return ``data`` as DATA frames, cut so that none contains a greeting."""
    if MAGIC not in data and len(data) <= MAX_PAYLOAD:
        return pack(DATA, session, data, stream)
    return b"".join(pack(DATA, session, part, stream) for part in _cut(data))


def _cut(data: bytes) -> list[bytes]:
    parts = []
    start = 0
    while start < len(data):
        end = min(start + MAX_PAYLOAD, len(data))
        hit = data.find(MAGIC, start, end)
        if hit >= 0:
            end = hit + 1
        parts.append(data[start:end])
        start = end
    return parts


def pack_hello() -> bytes:
    """Return this side's HELLO frame."""
    return pack(HELLO, 0, _HELLO.pack(VERSION_MAJOR, VERSION_MINOR, 0, MAX_PAYLOAD, 0))


def unpack_hello(payload: bytes) -> tuple[int, int, int]:
    """Return (major, minor, features) of a HELLO frame's payload."""
    if len(payload) < _HELLO.size:
        raise AgentError("the agent's greeting is too short")
    major, minor, features, _, _ = _HELLO.unpack_from(payload)
    return major, minor, features


def pack_run(
    session: int,
    argv: list[str] | str,
    *,
    flags: int,
    window: tuple[int, int],
    tty: tuple[int, int] | None = None,
    env: dict[str, str] | None = None,
    cwd: str | None = None,
) -> bytes:
    """Return a RUN frame; a string is a command for the shell, ``window`` is in bytes."""
    if isinstance(argv, str):
        argv = [argv]
        flags |= RUN_SHELL
    columns, rows = tty or (0, 0)
    pairs = [f"{key}={value}" for key, value in (env or {}).items()]
    strings = [cwd or "", *argv, *pairs]
    head = _RUN.pack(
        flags | (RUN_TTY if tty else 0), columns, rows, len(argv), len(pairs), 0, *window
    )
    text = b"".join(s.encode("utf-8", "surrogateescape") + b"\0" for s in strings)
    if not argv or text.count(b"\0") != len(strings) or MAGIC in text:
        raise BadInput("the command is empty, or holds a character that cannot be sent")
    if len(head) + len(text) > MAX_PAYLOAD or len(strings) > 4096:
        raise BadInput("the command and its environment are longer than 64 KiB")
    return pack(RUN, session, head + text)


def pack_word(kind: int, session: int, value: int, stream: int = 0) -> bytes:
    """Return a frame whose payload is one 32-bit number."""
    return pack(kind, session, _WORD.pack(value), stream)


def pack_resize(session: int, columns: int, rows: int) -> bytes:
    """Return a RESIZE frame."""
    return pack(RESIZE, session, _SIZE.pack(columns, rows))


def pack_exit(session: int, kind: int, value: int) -> bytes:
    """Return an EXIT frame."""
    return pack(EXIT, session, _PAIR.pack(kind, value))


def unpack_exit(payload: bytes) -> tuple[int, int]:
    """Return (kind, value) of an EXIT frame's payload."""
    if len(payload) < _PAIR.size:
        raise AgentError("the agent's exit status is too short")
    kind, value = _PAIR.unpack_from(payload)
    return kind, value


def unpack_word(payload: bytes) -> int:
    """Return the 32-bit number that a payload begins with."""
    if len(payload) < _WORD.size:
        raise AgentError("a frame of the agent is too short")
    value: int = _WORD.unpack_from(payload)[0]
    return value


class Decoder:
    """Turn a byte stream into frames (kind, stream, session, payload).

    ``greeting`` is what the peer must send first; everything before it is left over from
    another connection and is dropped. An empty one expects frames at once.
    """

    __slots__ = ("_buffer", "_greeting")

    def __init__(self, greeting: bytes = b"") -> None:
        self._buffer = bytearray()
        self._greeting = greeting

    @property
    def greeted(self) -> bool:
        """Tell whether the peer's greeting has come."""
        return not self._greeting

    def feed(self, data: bytes) -> list[tuple[int, int, int, bytes]]:
        """Take what was read and return the frames that are whole now.

        Raises AgentError when a frame is longer than any may be.
        """
        buffer = self._buffer
        buffer += data
        if self._greeting and not self._find_greeting():
            return []
        frames = []
        at = 0
        while len(buffer) - at >= HEADER_SIZE:
            kind, stream, session, length = _HEADER.unpack_from(buffer, at)
            if length > MAX_PAYLOAD:
                raise AgentError("the agent sent a frame that is too long")
            end = at + HEADER_SIZE + length
            if end > len(buffer):
                break
            frames.append((kind, stream, session, bytes(buffer[at + HEADER_SIZE : end])))
            at = end
        del buffer[:at]
        return frames

    def _find_greeting(self) -> bool:
        buffer = self._buffer
        at = buffer.find(self._greeting)
        if at < 0:
            keep = len(self._greeting) - 1
            if len(buffer) > keep:
                del buffer[:-keep]
            return False
        del buffer[: at + len(self._greeting)]
        self._greeting = b""
        return True
