"""Frames survive being cut anywhere, and nothing that a peer sends makes the decoder fail oddly."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpv.agent import frames
from kvmpv.errors import AgentError, BadInput

one = st.tuples(
    st.sampled_from([frames.DATA, frames.EXIT, frames.CREDIT, frames.PONG]),
    st.integers(0, 255),
    st.integers(0, 65535),
    st.binary(max_size=300),
)


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    marks = sorted({0, len(stream), *(place % (len(stream) + 1) for place in places)})
    return [stream[a:b] for a, b in itertools.pairwise(marks)]


@given(st.lists(one, max_size=8), st.lists(st.integers(0, 5000), max_size=12), st.binary())
def test_frames_come_out_as_they_went_in_wherever_they_are_cut(
    sent: list[tuple[int, int, int, bytes]], places: list[int], before: bytes
) -> None:
    greeting = frames.MAGIC + b"n" * 16
    stream = before + greeting
    stream += b"".join(frames.pack(k, number, data, s) for k, s, number, data in sent)
    decoder = frames.Decoder(greeting)
    got = [frame for part in cut(stream, places) for frame in decoder.feed(part)]
    assert got == sent
    assert decoder.greeted


@given(st.binary(max_size=2000), st.lists(st.integers(0, 5000), max_size=5))
def test_junk_gives_frames_or_an_agent_error(junk: bytes, places: list[int]) -> None:
    decoder = frames.Decoder()
    try:
        for part in cut(junk, places):
            decoder.feed(part)
    except AgentError:
        pass


def test_nothing_comes_out_before_the_greeting() -> None:
    decoder = frames.Decoder(frames.MAGIC + b"n" * 16)
    assert decoder.feed(frames.pack(frames.PONG) * 10_000) == []
    assert not decoder.greeted


def test_a_frame_that_is_too_long_is_refused() -> None:
    head = bytes([frames.DATA, 1, 1, 0]) + (frames.MAX_PAYLOAD + 1).to_bytes(4, "little")
    with pytest.raises(AgentError, match="too long"):
        frames.Decoder().feed(head)


@given(st.lists(st.sampled_from([frames.MAGIC, b"\xff", b"kvmpv", b"x" * 40_000]), max_size=6))
def test_data_never_carries_a_greeting(parts: list[bytes]) -> None:
    data = b"".join(parts)
    packed = frames.pack_data(5, frames.STDIN, data)
    assert frames.MAGIC not in packed
    got = frames.Decoder().feed(packed)
    assert b"".join(payload for _, _, _, payload in got) == data


@given(st.integers(0, 255), st.integers(0, 255), st.integers(1, 65535), st.integers(0, 65536))
def test_a_greeting_cannot_lie_across_a_header(
    kind: int, stream: int, session: int, length: int
) -> None:
    header = frames.pack(kind, session, b"", stream)[:4] + length.to_bytes(4, "little")
    # Every header ends in a zero byte, and the greeting holds none.
    assert header[-1] == 0
    assert 0 not in frames.MAGIC


@pytest.mark.parametrize("kind", [v for k, v in vars(frames).items() if k in {
    "HELLO", "PING", "PONG", "ERROR", "POWER", "REFRESH", "RUN", "DATA", "EOF", "CREDIT",
    "SIGNAL", "RESIZE", "EXIT", "CLOSE", "RELAY"}])  # fmt: skip
def test_no_header_ends_a_greeting_that_a_payload_began(kind: int) -> None:
    header = frames.pack(kind, 1, b"", 0)
    for length in range(1, 8):
        assert not frames.MAGIC.endswith(header[:length])


@pytest.mark.parametrize(
    "argv", [[], ["a\0b"], ["x" * 70_000], ["a"] * 5000, [frames.MAGIC.decode("latin-1")]]
)
def test_a_command_that_cannot_be_sent_is_bad_input(argv: list[str]) -> None:
    if argv and argv[0].startswith("\xff"):
        argv = [frames.MAGIC.decode("utf-8", "surrogateescape")]
    with pytest.raises(BadInput):
        frames.pack_run(1, argv, flags=0, window=(1, 1))


def test_short_payloads_are_agent_errors() -> None:
    for unpack in (frames.unpack_exit, frames.unpack_hello, frames.unpack_word):
        with pytest.raises(AgentError):
            unpack(b"\0\0\0")
