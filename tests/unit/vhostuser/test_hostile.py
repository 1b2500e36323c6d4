"""A hostile front end: what cannot be ends its session with one error, and leaks nothing."""

from __future__ import annotations

import fcntl
import os
import struct
import threading
from typing import TYPE_CHECKING, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpv.errors import VhostUserError
from kvmpv.vhostuser import message, shared
from kvmpv.vhostuser.device import Device
from kvmpv.vhostuser.message import (
    ADDRESSES,
    CONFIG,
    HEADER,
    INFLIGHT,
    LOG,
    ONE_REGION,
    REGION,
    STATE,
    TABLE,
    U64,
)
from tests.unit.vhostuser.peer import MIB, SEALS, USER, Peer, Recorder, descriptors, memfd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TOP = 1 << 64


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    before = descriptors(), maps(), len(shared._mappings)
    yield
    assert (descriptors(), maps(), len(shared._mappings)) == before


def maps() -> int:
    with open("/proc/self/maps") as file:
        return sum("memfd:" in line for line in file)


@pytest.fixture
def peer() -> Iterator[Peer]:
    made = Peer()
    yield made
    made.close()


def table(*regions: tuple[int, int, int, int], count: int | None = None) -> bytes:
    head = TABLE.pack(len(regions) if count is None else count, 0)
    return head + b"".join(REGION.pack(*region) for region in regions)


def refused(peer: Peer, request: int, payload: bytes = b"", *fds: int) -> str:
    """Send a message that is to be refused; the descriptors are closed here."""
    try:
        with pytest.raises(VhostUserError) as caught:
            peer.send(request, payload, *fds)
    finally:
        for fd in fds:
            os.close(fd)
    assert not caught.value.gone
    assert "\n" not in str(caught.value)
    return str(caught.value)


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


# ---- memory

GOOD = (0, MIB, USER, 0)


@pytest.mark.parametrize(
    ("regions", "match"),
    [
        ([(0, 0, USER, 0)], "cannot be"),
        ([(TOP - MIB + 4096, MIB, USER, 0)], "cannot be"),
        ([(0, MIB, TOP - 4096, 0)], "cannot be"),
        ([(0, TOP - 1, 0, 0)], "cannot be mapped"),
        ([(0, MIB, USER, 1)], "cannot be mapped"),
        ([(0, MIB, USER, TOP - 4096)], "cannot be mapped"),
        ([(0, 2 * MIB, USER, 0)], "truncated"),
        ([(0, MIB, USER, 4096)], "truncated"),
        ([GOOD, (MIB - 1, MIB, USER + MIB, 0)], "overlap"),
        ([GOOD, (MIB, MIB, USER + MIB - 1, 0)], "overlap"),
        ([GOOD, GOOD], "overlap"),
        ([(0, MIB, USER, 0), (1 << 40, MIB, 0, 0), (4096, 4096, 1 << 50, 0)], "overlap"),
    ],
)
def test_memory_that_cannot_be_is_refused(
    peer: Peer, regions: list[tuple[int, int, int, int]], match: str
) -> None:
    fds = [memfd(MIB) for _ in regions]
    assert match in refused(peer, message.SET_MEM_TABLE, table(*regions), *fds)
    assert peer.session.regions == []


@pytest.mark.parametrize(
    ("payload", "fds"),
    [
        (b"", 0),
        (table(), 0),
        (table(GOOD)[:-1], 1),
        (table(GOOD) + b"\0", 1),
        (table(GOOD), 0),
        (table(GOOD), 2),
        (table(GOOD, count=2), 2),
        (table(GOOD, count=0xFFFFFFFF), 1),
        (table(*[(n << 30, 4096, n << 30, 0) for n in range(9)]), 8),
    ],
)
def test_a_table_that_does_not_fit_together_is_refused(
    peer: Peer, payload: bytes, fds: int
) -> None:
    refused(peer, message.SET_MEM_TABLE, payload, *[memfd(MIB) for _ in range(fds)])


@pytest.mark.parametrize("seals", [0, fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW])
def test_memory_that_could_be_truncated_is_refused(peer: Peer, seals: int) -> None:
    said = refused(peer, message.SET_MEM_TABLE, table(GOOD), memfd(MIB, seals))
    assert "could be truncated" in said


def test_memory_that_could_be_truncated_is_taken_where_the_user_says_so() -> None:
    peer = Peer()
    peer.device.unsealed = True
    fd = memfd(MIB, 0)
    peer.send(message.SET_MEM_TABLE, table(GOOD), fd)
    assert [region.size for region in peer.session.regions] == [MIB]
    os.close(fd)
    short = memfd(MIB - 4096, 0)
    assert "truncated" in refused(peer, message.SET_MEM_TABLE, table(GOOD), short)
    peer.close()


@pytest.mark.parametrize(
    "opened",
    [
        lambda: os.open("/dev/zero", os.O_RDWR),
        lambda: os.open("/", os.O_RDONLY),
        lambda: os.eventfd(0),
        lambda: os.dup(0),
    ],
)
def test_what_is_no_memory_is_refused(peer: Peer, opened: Callable[[], int]) -> None:
    refused(peer, message.SET_MEM_TABLE, table(GOOD), opened())
    peer.device.unsealed = True
    refused(peer, message.SET_MEM_TABLE, table(GOOD), opened())


def test_memory_that_may_not_be_written_is_refused(peer: Peer) -> None:
    sealed = memfd(MIB, SEALS & ~fcntl.F_SEAL_SEAL | fcntl.F_SEAL_WRITE)
    assert "cannot be mapped" in refused(peer, message.SET_MEM_TABLE, table(GOOD), sealed)
    whole = memfd(MIB)
    read_only = os.open(f"/proc/self/fd/{whole}", os.O_RDONLY)
    os.close(whole)
    assert "cannot be mapped" in refused(peer, message.SET_MEM_TABLE, table(GOOD), read_only)


def test_memory_is_mapped_once_for_all_sessions() -> None:
    peers = [Peer(), Peer()]
    fd = memfd(MIB)
    for peer in peers:
        peer.send(message.SET_MEM_TABLE, table(GOOD), fd)
    os.close(fd)
    first, second = (peer.session.regions[0] for peer in peers)
    assert first.address == second.address
    peers[0].close()
    assert bytes(second.view[:4]) == bytes(4)
    peers[1].close()


def test_a_region_is_removed_by_all_of_its_name(peer: Peer) -> None:
    peer.negotiate()
    peer.share()
    for wrong in ((1, MIB, USER), (0, MIB - 1, USER), (0, MIB, USER + 1)):
        assert "no memory region" in refused(
            peer, message.REM_MEM_REG, ONE_REGION.pack(0, *wrong, 0)
        )
    peer.send(message.REM_MEM_REG, ONE_REGION.pack(0, 0, MIB, USER, 5))
    assert peer.session.regions == []


def test_regions_beyond_the_slots_are_refused(peer: Peer) -> None:
    peer.negotiate()
    fd = memfd(MIB)
    for number in range(message.SLOTS_MAX):
        where = (number * MIB, MIB, USER + number * MIB, 0)
        peer.send(message.ADD_MEM_REG, ONE_REGION.pack(0, *where), fd)
    beyond = ONE_REGION.pack(0, 1 << 40, MIB, 1 << 40, 0)
    assert "more than" in refused(peer, message.ADD_MEM_REG, beyond, fd)


# ---- rings


def test_a_ring_before_its_memory_is_refused(peer: Peer) -> None:
    peer.negotiate()
    assert "before there is memory" in refused(
        peer, message.SET_VRING_ADDR, ADDRESSES.pack(0, 0, 0, 0, 0, 0)
    )
    assert "before it has memory" in refused(
        peer, message.SET_VRING_KICK, U64.pack(0), os.eventfd(0)
    )


@pytest.mark.parametrize("num", [0, 3, 48, 65536, 0x80000000, 0xFFFFFFFF])
def test_a_ring_of_an_odd_size_is_refused(peer: Peer, num: int) -> None:
    assert "entries" in refused(peer, message.SET_VRING_NUM, STATE.pack(0, num))


@pytest.mark.parametrize(
    "parts",
    [
        (USER - 16, USER, USER),
        (USER + MIB - 255, USER, USER),
        (USER + MIB - 256 + 16, USER, USER),
        (USER + 8, USER, USER),
        (USER, USER + 2, USER),
        (USER, USER, USER + 1),
        (USER, USER + MIB - 128, USER),
        (USER, USER, USER + MIB - 32),
        (TOP - 16, USER, USER),
        (0, 0, 0),
        (TOP - 1, TOP - 1, TOP - 1),
    ],
)
def test_a_ring_that_does_not_lie_in_memory_is_refused(
    peer: Peer, parts: tuple[int, int, int]
) -> None:
    peer.share()
    peer.send(message.SET_VRING_NUM, STATE.pack(0, 16))
    assert "no place for a ring" in refused(
        peer, message.SET_VRING_ADDR, ADDRESSES.pack(0, 0, *parts, 0)
    )


def test_a_ring_across_two_regions_is_refused(peer: Peer) -> None:
    fd = memfd(2 * MIB)
    halves = table((0, MIB, USER, 0), (MIB, MIB, USER + MIB, MIB))
    peer.send(message.SET_MEM_TABLE, halves, fd, fd)
    os.close(fd)
    peer.send(message.SET_VRING_NUM, STATE.pack(0, 16))
    across = ADDRESSES.pack(0, 0, USER + MIB - 16, USER, USER, 0)
    assert "no place" in refused(peer, message.SET_VRING_ADDR, across)


def test_a_ring_that_grew_out_of_memory_is_refused_at_its_start(peer: Peer) -> None:
    peer.share()
    peer.send(message.SET_VRING_NUM, STATE.pack(0, 16))
    end = USER + MIB
    peer.send(message.SET_VRING_ADDR, ADDRESSES.pack(0, 0, end - 256, end - 256, USER, 0))
    peer.send(message.SET_VRING_NUM, STATE.pack(0, 32768))
    assert "no place" in refused(peer, message.SET_VRING_KICK, U64.pack(0), os.eventfd(0))


@pytest.mark.parametrize(
    "request_number",
    [
        *(message.SET_VRING_NUM, message.SET_VRING_BASE, message.GET_VRING_BASE),
        *(message.SET_VRING_ENABLE,),
    ],
)
@pytest.mark.parametrize("index", [4, 256, 0xFFFFFFFF])
def test_a_queue_that_the_device_has_not_is_refused(request_number: int, index: int) -> None:
    peer = Peer()
    assert "has no queue" in refused(peer, request_number, STATE.pack(index, 1))
    peer.close()


@pytest.mark.parametrize("value", [4, 0x200, 1 << 63])
def test_an_eventfd_for_no_queue_is_refused(peer: Peer, value: int) -> None:
    refused(peer, message.SET_VRING_CALL, U64.pack(value), os.eventfd(0))


@pytest.mark.parametrize("request_number", [12, 13, 14])
def test_an_eventfd_comes_or_is_said_not_to(request_number: int) -> None:
    peer = Peer()
    peer.share()
    peer.describe()
    refused(peer, request_number, U64.pack(0))
    refused(peer, request_number, U64.pack(message.VRING_NO_FD), os.eventfd(0))
    peer.send(request_number, U64.pack(message.VRING_NO_FD))
    peer.close()


@pytest.mark.parametrize("request_number", [12, 13, 14])
def test_what_is_no_eventfd_is_refused(request_number: int) -> None:
    peer = Peer()
    peer.share()
    peer.describe()
    reader, writer = os.pipe()
    assert "no eventfd" in refused(peer, request_number, U64.pack(0), reader)
    assert "no eventfd" in refused(peer, request_number, U64.pack(0), writer)
    assert "no eventfd" in refused(peer, request_number, U64.pack(0), memfd(8))
    peer.close()


def test_a_ring_that_runs_keeps_its_shape(peer: Peer) -> None:
    peer.share()
    peer.describe()
    kick = peer.kick()
    refused(peer, message.SET_VRING_NUM, STATE.pack(0, 32))
    refused(peer, message.SET_VRING_BASE, STATE.pack(0, 1))
    refused(peer, message.SET_FEATURES, U64.pack(1 << 32))
    assert not os.get_blocking(kick)
    os.close(kick)


def test_a_base_beyond_sixteen_bits_is_refused(peer: Peer) -> None:
    refused(peer, message.SET_VRING_BASE, STATE.pack(0, 65536))


def test_memory_may_not_go_from_under_a_ring(peer: Peer) -> None:
    peer.negotiate()
    peer.share()
    peer.describe()
    kick = peer.kick()
    gone = ONE_REGION.pack(0, 0, MIB, USER, 0)
    refused(peer, message.REM_MEM_REG, gone)
    assert isinstance(peer.device, Recorder)
    assert peer.device.running == {}
    os.close(kick)


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
