"""A hostile back end: what it answers wrongly is one error for the VMM, and leaks nothing."""

from __future__ import annotations

import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpv.errors import VhostUserError
from kvmpv.vhostuser import message
from kvmpv.vhostuser.frontend import BackChannel, Frontend
from kvmpv.vhostuser.message import CONFIG, HEADER, INFLIGHT, STATE, U64
from tests.unit.vhostuser.peer import pair, raw

if TYPE_CHECKING:
    from collections.abc import Callable

REPLY = message.REPLY | message.VERSION


def answered(
    data: bytes, call: Callable[[Frontend], object], *fds: int, features: int = 0
) -> Exception | None:
    """Have a call answered with some bytes and descriptors; return what it raised."""
    ours, theirs = pair()
    frontend = Frontend(raw(ours), 0.2)
    frontend.protocol_features = features
    socket.send_fds(theirs, [data], fds) if data else theirs.close()
    try:
        call(frontend)
    except VhostUserError as error:
        return error
    finally:
        frontend.close()
        theirs.close()
        for fd in fds:
            os.close(fd)
    return None


def reply(request: int, payload: bytes = b"", flags: int = REPLY) -> bytes:
    return HEADER.pack(request, flags, len(payload)) + payload


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        reply(message.GET_FEATURES, U64.pack(1))[:-1],
        reply(message.GET_FEATURES, bytes(7)),
        reply(message.GET_FEATURES, bytes(9)),
        reply(message.GET_PROTOCOL_FEATURES, U64.pack(1)),
        reply(message.GET_FEATURES, U64.pack(1), flags=1),
        reply(message.GET_FEATURES, U64.pack(1), flags=0),
        HEADER.pack(message.GET_FEATURES, REPLY, 0xFFFFFFFF),
    ],
)
def test_a_wrong_answer_is_an_error(data: bytes) -> None:
    assert isinstance(answered(data, Frontend.get_features), VhostUserError)


def test_an_answer_with_descriptors_that_nobody_asked_for_is_an_error() -> None:
    fds = [os.eventfd(0), os.eventfd(0)]
    data = reply(message.GET_FEATURES, U64.pack(1))
    assert isinstance(answered(data, Frontend.get_features, *fds), VhostUserError)


def test_a_refusal_is_an_error() -> None:
    data = reply(message.SET_OWNER, U64.pack(1))
    features = message.PF_REPLY_ACK
    error = answered(data, Frontend.set_owner, features=features)
    assert "refuses request 3" in str(error)
    assert answered(reply(message.SET_OWNER, U64.pack(0)), Frontend.set_owner) is None


def test_another_ring_than_the_one_to_stop_is_an_error() -> None:
    data = reply(message.GET_VRING_BASE, STATE.pack(1, 5))
    assert "stops queue 1" in str(answered(data, lambda frontend: frontend.get_vring_base(0)))


@pytest.mark.parametrize("size", [0, 11, 12, 15, 17])
def test_config_of_another_size_is_an_error(size: int) -> None:
    data = reply(message.GET_CONFIG, (CONFIG.pack(0, 4, 0) + bytes(16))[:size])
    error = answered(data, lambda frontend: frontend.get_config(0, 4))
    assert isinstance(error, VhostUserError)


@pytest.mark.parametrize(("size", "fds"), [(24, 0), (24, 2), (23, 1), (0, 1)])
def test_an_in_flight_log_that_is_none_is_an_error(size: int, fds: int) -> None:
    data = reply(message.GET_INFLIGHT_FD, INFLIGHT.pack(4096, 0, 1, 64)[:size])
    opened = [os.eventfd(0) for _ in range(fds)]
    error = answered(data, lambda frontend: frontend.get_inflight_fd(1, 64), *opened)
    assert isinstance(error, VhostUserError)


@given(st.binary(min_size=1, max_size=64))
def test_no_bytes_bring_the_front_end_down(data: bytes) -> None:
    ours, theirs = pair()
    theirs.sendall(data)
    theirs.close()
    frontend = Frontend(raw(ours), 0.2)
    try:
        frontend.negotiate()
    except VhostUserError:
        pass
    frontend.close()


def test_one_that_does_not_read_is_given_up() -> None:
    ours, theirs = pair()
    frontend = Frontend(raw(ours), 0.05)
    with pytest.raises(VhostUserError, match="does not read"):
        tell_for_ever(frontend)
    frontend.close()
    theirs.close()


def tell_for_ever(frontend: Frontend) -> None:
    while True:
        frontend.set_owner()


def test_calls_from_several_threads_get_their_own_answers() -> None:
    ours, theirs = pair()
    frontend = Frontend(raw(ours), 5)

    def serve() -> None:
        for _ in range(200):
            request, _, _ = HEADER.unpack(theirs.recv(HEADER.size))
            theirs.sendall(reply(request, U64.pack(request)))

    got: set[int] = set()
    callers = [
        threading.Thread(target=lambda call=call: got.update(call() for _ in range(100)))
        for call in (frontend.get_features, frontend.get_protocol_features)
    ]
    server = threading.Thread(target=serve)
    for thread in (server, *callers):
        thread.start()
    for thread in (server, *callers):
        thread.join(10)
    assert got == {message.GET_FEATURES, message.GET_PROTOCOL_FEATURES}
    frontend.close()
    theirs.close()


# ---- what it asks of us


def channel(heard: list[int]) -> tuple[socket.socket, BackChannel]:
    theirs, ours = pair()
    return theirs, BackChannel(raw(ours), lambda: heard.append(1))


def test_what_it_may_not_ask_is_refused() -> None:
    heard: list[int] = []
    theirs, ours = channel(heard)
    fd = os.eventfd(0)
    wanted = message.VERSION | message.NEED_REPLY
    socket.send_fds(theirs, [HEADER.pack(3, wanted, 8) + bytes(8)], [fd])
    assert ours.ready()
    assert theirs.recv(100) == reply(3, U64.pack(1))
    theirs.sendall(HEADER.pack(message.BACKEND_CONFIG_CHANGE, wanted, 0))
    assert ours.ready()
    assert theirs.recv(100) == reply(message.BACKEND_CONFIG_CHANGE, U64.pack(0))
    assert heard == [1]
    theirs.sendall(b"nothing that makes sense")
    assert not ours.ready()
    ours.close()
    theirs.close()
    os.close(fd)
