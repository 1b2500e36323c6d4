"""A hostile front end: what cannot be ends its session with one error, and leaks nothing."""

from __future__ import annotations

import os
import struct
import threading
from typing import TYPE_CHECKING, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpv.errors import VhostUserError
from kvmpv.vhostuser import message
from kvmpv.vhostuser.device import Device
from kvmpv.vhostuser.message import (
    CONFIG,
    HEADER,
    INFLIGHT,
    LOG,
    U64,
)
from tests.unit.vhostuser.peer import MIB, USER, Peer, Recorder, descriptors, memfd, refused

if TYPE_CHECKING:
    pass

TOP = 1 << 64


# ---- framing


@pytest.mark.parametrize("cut", [1, 11, 12, 15, 19])
def test_a_message_in_pieces_is_waited_for(peer: Peer, cut: int) -> None:
    whole = HEADER.pack(message.SET_PROTOCOL_FEATURES, 1, 8) + U64.pack(message.PF_CONFIG)
    peer.send_raw(whole[:cut])
    assert peer.session.protocol_features == 0
    peer.send_raw(whole[cut:])
    assert peer.session.protocol_features == message.PF_CONFIG


@pytest.mark.parametrize("cut", [1, 12, 15])
def test_a_message_that_is_never_whole_is_dropped_with_its_descriptors(cut: int) -> None:
    peer = Peer()
    fd = os.eventfd(0)
    peer.send_raw((HEADER.pack(message.SET_VRING_KICK, 1, 8) + U64.pack(0))[:cut], fd)
    peer.socket.close()
    with pytest.raises(VhostUserError, match="within a message") as caught:
        peer.session.ready()
    assert caught.value.gone
    peer.close()
    os.close(fd)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (HEADER.pack(1, 0, 0), "another protocol"),
        (HEADER.pack(1, 2, 0), "another protocol"),
        (HEADER.pack(1, 1, 4097), "too long"),
        (HEADER.pack(1, 1, 0xFFFFFFFF), "too long"),
        (HEADER.pack(1, 5, 0), "as a reply"),
        (HEADER.pack(99, 1, 0), "not known"),
        (HEADER.pack(0, 1, 0), "not known"),
    ],
)
def test_what_is_no_request_is_refused(peer: Peer, data: bytes, match: str) -> None:
    with pytest.raises(VhostUserError, match=match):
        peer.send_raw(data)


def test_an_unknown_request_that_wants_an_answer_gets_no(peer: Peer) -> None:
    peer.negotiate()
    assert peer.ask(99, flags=1 | message.NEED_REPLY) == U64.pack(1)
    assert peer.ask(message.SET_OWNER, flags=1 | message.NEED_REPLY) == U64.pack(0)


def test_more_descriptors_than_a_message_may_have_are_refused(peer: Peer) -> None:
    fds = [os.eventfd(0) for _ in range(12)]
    assert "too many descriptors" in refused(peer, message.SET_OWNER, b"", *fds)


def test_descriptors_within_a_message_are_refused(peer: Peer) -> None:
    fd = os.eventfd(0)
    peer.send_raw(HEADER.pack(message.SET_FEATURES, 1, 8))
    with pytest.raises(VhostUserError, match="within a message"):
        peer.send_raw(U64.pack(0), fd)
    os.close(fd)


def serve_for_ever(peer: Peer) -> NoReturn:
    while True:
        peer.session.ready()


def test_one_that_does_not_read_is_hung_up_on(peer: Peer) -> None:
    request = HEADER.pack(message.GET_CONFIG, 1, 268) + CONFIG.pack(0, 256, 0) + bytes(256)
    peer.negotiate()
    peer.socket.settimeout(None)

    def flood() -> None:
        try:
            for _ in range(5000):
                peer.socket.sendall(request)
        except OSError:
            pass

    thread = threading.Thread(target=flood)
    thread.start()
    with pytest.raises(VhostUserError, match="does not read"):
        serve_for_ever(peer)
    peer.session.close()
    thread.join()


SIZES = {
    message.GET_FEATURES: 0,
    message.SET_FEATURES: 8,
    message.SET_OWNER: 0,
    message.RESET_OWNER: 0,
    message.SET_LOG_BASE: 16,
    message.SET_VRING_NUM: 8,
    message.SET_VRING_ADDR: 40,
    message.SET_VRING_BASE: 8,
    message.GET_VRING_BASE: 8,
    message.SET_VRING_KICK: 8,
    message.SET_VRING_CALL: 8,
    message.SET_VRING_ERR: 8,
    message.GET_PROTOCOL_FEATURES: 0,
    message.SET_PROTOCOL_FEATURES: 8,
    message.GET_QUEUE_NUM: 0,
    message.SET_VRING_ENABLE: 8,
    message.NET_SET_MTU: 8,
    message.SET_BACKEND_REQ_FD: 0,
    message.GET_INFLIGHT_FD: 24,
    message.SET_INFLIGHT_FD: 24,
    message.RESET_DEVICE: 0,
    message.GET_MAX_MEM_SLOTS: 0,
    message.ADD_MEM_REG: 40,
    message.REM_MEM_REG: 40,
    message.SET_STATUS: 8,
    message.GET_STATUS: 0,
}


@pytest.mark.parametrize("request_number", SIZES)
@pytest.mark.parametrize("off", [-1, 1])
def test_a_payload_of_a_wrong_size_is_refused(request_number: int, off: int) -> None:
    size = SIZES[request_number] + off
    if size < 0:
        return
    peer = Peer()
    peer.negotiate()
    refused(peer, request_number, bytes(size))
    peer.close()


@pytest.mark.parametrize("request_number", sorted(SIZES))
def test_descriptors_too_many_are_refused(request_number: int) -> None:
    peer = Peer()
    peer.negotiate()
    refused(peer, request_number, bytes(SIZES[request_number]), os.eventfd(0), os.eventfd(0))
    peer.close()


def test_every_request_is_tried_above(peer: Peer) -> None:
    by_hand = {message.SET_MEM_TABLE, message.SET_LOG_FD, message.GET_CONFIG, message.SET_CONFIG}
    assert set(SIZES) | by_hand == set(peer.session._handlers)


# ---- features


def test_features_that_were_not_offered_are_refused(peer: Peer) -> None:
    assert "not offered" in refused(peer, message.SET_FEATURES, U64.pack(1 << 33))


def test_protocol_features_that_were_not_offered_are_refused(peer: Peer) -> None:
    assert "not offered" in refused(peer, message.SET_PROTOCOL_FEATURES, U64.pack(1 << 63))


@pytest.mark.parametrize(
    "request_number",
    [
        *(message.SET_LOG_BASE, message.ADD_MEM_REG, message.REM_MEM_REG, message.GET_INFLIGHT_FD),
        *(message.SET_INFLIGHT_FD, message.NET_SET_MTU, message.SET_BACKEND_REQ_FD),
        *(message.RESET_DEVICE, message.SET_STATUS),
    ],
)
def test_what_was_not_negotiated_is_refused(request_number: int) -> None:
    peer = Peer()
    with_fd = (message.SET_LOG_BASE, message.ADD_MEM_REG, message.SET_INFLIGHT_FD)
    fds = [memfd(4096)] if request_number in (*with_fd, message.SET_BACKEND_REQ_FD) else []
    said = refused(peer, request_number, bytes(SIZES[request_number]), *fds)
    assert "negotiated" in said
    peer.close()


# ---- the in-flight log, the dirty log, config


@pytest.mark.parametrize(
    ("size", "offset", "queues", "ring_size"),
    [
        (4096, 0, 0, 64),
        (4096, 0, 5, 64),
        (4096, 0, 1, 0),
        (4096, 0, 1, 63),
        (MIB, 0, 1, 65535),
        (4096, 0, 4, 64),
        (4096, 1, 1, 64),
        (8192, 0, 1, 64),
        (4096, 4096, 1, 64),
        (TOP - 1, 0, 1, 64),
        (4096, TOP - 4096, 1, 64),
    ],
)
def test_an_in_flight_log_that_cannot_be_is_refused(
    peer: Peer, size: int, offset: int, queues: int, ring_size: int
) -> None:
    peer.negotiate()
    payload = INFLIGHT.pack(size, offset, queues, ring_size)
    refused(peer, message.SET_INFLIGHT_FD, payload, memfd(4096))


def test_an_in_flight_log_that_could_be_truncated_is_refused(peer: Peer) -> None:
    peer.negotiate()
    payload = INFLIGHT.pack(4096, 0, 1, 64)
    assert "truncated" in refused(peer, message.SET_INFLIGHT_FD, payload, memfd(4096, 0))


@pytest.mark.parametrize(("index", "num"), [(1, 16), (0, 128)])
def test_a_ring_that_the_in_flight_log_has_no_room_for_is_refused(
    peer: Peer, index: int, num: int
) -> None:
    peer.negotiate()
    fd = memfd(4096)
    peer.send(message.SET_INFLIGHT_FD, INFLIGHT.pack(4096, 0, 1, 64), fd)
    os.close(fd)
    peer.share()
    peer.describe(index, num)
    assert "too large" in refused(peer, message.SET_VRING_KICK, U64.pack(index), os.eventfd(0))


def test_another_in_flight_log_while_a_ring_runs_is_refused(peer: Peer) -> None:
    peer.negotiate()
    peer.share()
    peer.describe()
    kick = peer.kick()
    refused(peer, message.SET_INFLIGHT_FD, INFLIGHT.pack(4096, 0, 1, 64), memfd(4096))
    os.close(kick)


def test_a_dirty_log_that_cannot_be_is_refused(peer: Peer) -> None:
    peer.negotiate()
    for size, offset in ((0, 0), (8192, 0), (4096, 4096), (TOP - 1, 0)):
        refused(peer, message.SET_LOG_BASE, LOG.pack(size, offset), memfd(4096))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        CONFIG.pack(0, 4, 0),
        CONFIG.pack(0, 4, 0) + bytes(3),
        CONFIG.pack(0, 4, 0) + bytes(5),
        CONFIG.pack(253, 4, 0) + bytes(4),
        CONFIG.pack(0xFFFFFFFF, 4, 0) + bytes(4),
        CONFIG.pack(0, 257, 0) + bytes(257),
    ],
)
def test_config_out_of_its_space_is_refused(peer: Peer, payload: bytes) -> None:
    peer.negotiate()
    refused(peer, message.GET_CONFIG, payload)
    refused(peer, message.SET_CONFIG, payload)


def test_a_channel_that_is_no_socket_is_refused(peer: Peer) -> None:
    peer.negotiate()
    assert "no socket" in refused(peer, message.SET_BACKEND_REQ_FD, b"", os.eventfd(0))


# ---- the device's own failures


class Failing(Recorder):
    """A device that cannot start."""

    def start_queue(self, index: int, vring: object) -> NoReturn:
        raise VhostUserError("no thread can be had")


def test_a_device_that_cannot_start_leaves_nothing_behind() -> None:
    peer = Peer(Failing())
    peer.share()
    peer.describe()
    said = refused(peer, message.SET_VRING_KICK, U64.pack(0), os.eventfd(0))
    assert said == "no thread can be had"
    peer.close()


class Stubborn(Recorder):
    """A device of which one queue does not stop."""

    def stop_queue(self, index: int) -> int:
        if index == 0:
            raise VhostUserError("it hangs")
        return super().stop_queue(index)


def test_memory_stays_where_a_queue_may_still_use_it() -> None:
    device = Stubborn()
    peer = Peer(device)
    peer.share()
    for index in range(2):
        peer.describe(index)
        os.close(peer.kick(index))
    with pytest.raises(VhostUserError, match="it hangs"):
        peer.session.close()
    assert list(device.running) == [0]
    assert bytes(device.regions[0].view[:4]) == bytes(4)
    assert peer.session.fileno() == -1
    peer.session._give_back()  # for the test's own sake
    peer.socket.close()


# ---- anything at all


@st.composite
def messages(draw: st.DrawFn) -> tuple[bytes, int]:
    request = draw(st.one_of(st.sampled_from(sorted(SIZES)), st.integers(0, 50)))
    size = SIZES.get(request, 8)
    word = st.sampled_from([0, 1, 2, 16, 64, 256, 4096, MIB, USER, USER + 0x4000, TOP - 1])
    words = draw(st.lists(word, min_size=5, max_size=5))
    payload = struct.pack("=5Q", *words)[:size]
    if draw(st.integers(0, 9)) == 0:
        payload = draw(st.binary(max_size=48))
    flags = draw(st.sampled_from([1, 9, 9, 1, 5, 0]))
    return HEADER.pack(request, flags, len(payload)) + payload, draw(st.integers(0, 2))


@given(st.lists(messages(), max_size=12))
def test_no_messages_bring_it_down(sent: list[tuple[bytes, int]]) -> None:
    before = descriptors()
    peer = Peer(Device())
    peer.device.queue_count = 2
    peer.device.protocol_features = message.PF_KNOWN
    fds = [os.eventfd(0), memfd(MIB)]
    try:
        peer.negotiate(message.PF_KNOWN)
        peer.share()
        for data, count in sent:
            peer.send_raw(data, *fds[:count])
    except VhostUserError:
        pass
    finally:
        peer.close()
        for fd in fds:
            os.close(fd)
    assert descriptors() == before


@given(st.binary(max_size=200))
def test_no_bytes_bring_it_down(data: bytes) -> None:
    peer = Peer()
    try:
        peer.send_raw(data or b"\0")
    except VhostUserError:
        pass
    peer.close()
