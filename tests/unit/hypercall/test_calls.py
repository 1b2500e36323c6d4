"""What the calls do, one by one, as docs/abi/hypercalls.md has it."""

from __future__ import annotations

import pytest

from kvmpv import abi
from tests.unit.hypercall.world import MESSAGE, RAM, World

AT = 0x1000


def put(world: World, data: bytes) -> int:
    world.memory.write(AT, data)
    return len(data)


def read(world: World, layout: abi.Layout) -> dict[str, object]:
    found = world.memory.slice(AT, layout.size)
    assert found is not None
    return dict(zip(layout.fields, layout.unpack(found), strict=True))


# ---- version


def test_version_and_features(world: World) -> None:
    assert world.call(abi.HC_VERSION) == abi.VERSION
    assert world.call(abi.HC_FEATURES, abi.FEATURES) == 0
    assert world.version.announced == abi.FEATURES
    assert world.call(abi.HC_FEATURES, 1 << 40) == -abi.EINVAL
    assert world.version.announced == abi.FEATURES


# ---- console


def test_log_reaches_terminal_and_report_with_line_ends(world: World) -> None:
    length = put(world, b"one\ntwo\n")
    assert world.call(abi.HC_LOG, AT, length) == length
    assert world.streams[0].recv(100) == b"one\r\ntwo\r\n"
    assert world.ports.last == b"one\r\ntwo\r\n"


def test_log_that_nobody_reads_is_dropped_and_counted(world: World) -> None:
    for _ in range(100):
        assert world.call(abi.HC_LOG, 0, abi.MAX_BUFFER) == abi.MAX_BUFFER
    assert world.ports.log_records == 100
    assert world.ports.log_dropped > 0
    assert len(world.ports.last) <= 3 * abi.MAX_BUFFER


def test_write_waits_for_room_by_event(world: World) -> None:
    port = abi.PORT_EXEC
    channel = world.channel(0x40)
    assert world.call(abi.HC_PORT_BIND, port, channel) == 0
    sent = 0
    while (result := world.call(abi.HC_PORT_WRITE, port, 0, abi.MAX_BUFFER)) != -abi.EAGAIN:
        assert result is not None
        assert result > 0
        sent += result
    assert world.armed[-1] == (port, 2)
    world.signals.clear()
    world.streams[port].recv(sent)
    world.ports.notify(port)
    assert world.signals == [(MESSAGE, 0x40)]


def test_read_gives_what_came_and_arms_when_drained(world: World) -> None:
    port = abi.PORT_EXEC
    assert world.call(abi.HC_PORT_READ, port, AT, 16) == -abi.EAGAIN
    assert world.armed == [(port, 1)]
    world.streams[port].send(b"input")
    assert world.call(abi.HC_PORT_READ, port, AT, 3) == 3
    assert world.armed == [(port, 1)]  # there is more: no event is needed
    assert world.call(abi.HC_PORT_READ, port, AT + 3, 16) == 2
    assert world.armed == [(port, 1), (port, 1)]
    found = world.memory.slice(AT, 5)
    assert found is not None
    assert bytes(found) == b"input"


def test_end_of_file_comes_after_the_last_byte_and_stays(world: World) -> None:
    port = abi.PORT_EXEC
    world.streams[port].send(b"x")
    world.streams[port].close()
    results = [world.call(abi.HC_PORT_READ, port, AT, 16) for _ in range(3)]
    assert results == [1, 0, 0]
    put(world, abi.PORT_STATUS.pack(1, abi.PORT_STATUS.size, 0, 0, 0, 0))
    assert world.call(abi.HC_PORT_STATUS, port, AT) == 0
    assert read(world, abi.PORT_STATUS)["flags"] == abi.PORT_EOF | abi.PORT_WRITABLE


def test_write_to_who_has_gone_is_a_broken_pipe(world: World) -> None:
    world.streams[1].close()
    assert world.call(abi.HC_PORT_WRITE, 1, AT, 4) == -abi.EPIPE
    assert world.call(abi.HC_PORT_WRITE, 1, AT, 4) == -abi.EPIPE


def test_closed_port_is_the_hosts_end_of_file(world: World) -> None:
    assert world.call(abi.HC_PORT_CLOSE, 1) == 0
    assert world.streams[1].recv(1) == b""
    assert world.call(abi.HC_PORT_WRITE, 1, AT, 1) == -abi.EPIPE
    assert world.call(abi.HC_PORT_CLOSE, 1) == 0


def test_window_size_is_told_with_the_status(world: World) -> None:
    channel = world.channel(0x41)
    world.call(abi.HC_PORT_BIND, 0, channel)
    world.signals.clear()
    world.ports.set_window(0, 132, 43)
    assert world.signals == [(MESSAGE, 0x41)]
    put(world, abi.PORT_STATUS.pack(1, abi.PORT_STATUS.size, 0, 0, 0, 0))
    assert world.call(abi.HC_PORT_STATUS, 0, AT) == 0
    status = read(world, abi.PORT_STATUS)
    assert (status["columns"], status["rows"]) == (132, 43)


# ---- events


def test_channels_are_given_out_up_to_the_limit_and_again(world: World) -> None:
    given = [world.call(abi.HC_EVTCHN_ALLOC) for _ in range(abi.MAX_CHANNELS)]
    assert given == list(range(abi.MAX_CHANNELS))
    assert world.call(abi.HC_EVTCHN_ALLOC) == -abi.ENOSPC
    assert world.call(abi.HC_EVTCHN_CLOSE, 77) == 0
    assert world.call(abi.HC_EVTCHN_ALLOC) == 77


def test_send_needs_a_channel_and_a_message(world: World) -> None:
    assert world.call(abi.HC_EVTCHN_SEND, 0) == -abi.ENOENT
    channel = world.call(abi.HC_EVTCHN_ALLOC)
    assert channel is not None
    assert world.call(abi.HC_EVTCHN_SEND, channel) == -abi.ENOTCONN
    bound = world.channel(0x50)
    assert world.call(abi.HC_EVTCHN_SEND, bound) == 0
    assert world.signals == [(MESSAGE, 0x50)]


def bind(world: World, *messages: tuple[int, int, int], count: int = -1, each: int = 16) -> object:
    number = len(messages) if count < 0 else count
    data = abi.EVTCHN_BIND.pack(1, abi.EVTCHN_BIND.size, number, each)
    put(world, data + b"".join(abi.EVTCHN_MESSAGE.pack(*message) for message in messages))
    return world.call(abi.HC_EVTCHN_BIND, AT)


def test_bind_is_for_all_channels_or_for_none(world: World) -> None:
    channel = world.channel(0x60)
    assert bind(world, (MESSAGE, 0x61, channel), (MESSAGE, 0x62, 99)) == -abi.ENOENT
    assert bind(world, (MESSAGE, 0x61, channel), (0x1000, 0x62, channel)) == -abi.EINVAL
    world.call(abi.HC_EVTCHN_SEND, channel)
    assert world.signals == [(MESSAGE, 0x60)]


@pytest.mark.parametrize(
    ("address", "data"),
    [
        (0xFED00000, 0x40),
        (1 << 32 | MESSAGE, 0x40),
        (MESSAGE, 15),
        (MESSAGE, 0x240),
        (MESSAGE, 0x8040),
    ],
)
def test_message_that_is_no_plain_interrupt_is_refused(
    world: World, address: int, data: int
) -> None:
    channel = world.channel(0x60)
    assert bind(world, (address, data, channel)) == -abi.EINVAL


def test_bind_beyond_the_buffer_is_refused(world: World) -> None:
    channel = world.channel(0x60)
    assert bind(world, (MESSAGE, 0x61, channel), count=0) == -abi.EINVAL
    assert bind(world, (MESSAGE, 0x61, channel), count=1025) == -abi.EINVAL
    assert bind(world, (MESSAGE, 0x61, channel), count=1024, each=65535) == -abi.EMSGSIZE
    assert bind(world, (MESSAGE, 0x61, channel), each=15) == -abi.EINVAL
    assert world.call(abi.HC_EVTCHN_BIND, RAM - 4) == -abi.EFAULT


def test_closed_channel_is_forgotten_by_those_who_send_on_it(world: World) -> None:
    channel = world.channel(0x60)
    world.call(abi.HC_PORT_BIND, 0, channel)
    world.call(abi.HC_REQUESTS_BIND, channel)
    assert world.call(abi.HC_EVTCHN_CLOSE, channel) == 0
    world.channel(0x61)  # the same number, another's
    world.signals.clear()
    world.ports.notify(0)
    assert world.requests.ask(abi.REQUEST_POWEROFF) is False
    assert world.signals == []


# ---- requests


def test_requests_are_kept_until_they_are_taken(world: World) -> None:
    assert world.requests.ask(abi.REQUEST_SYSRQ, sysrq=ord("t")) is False
    assert world.requests.ask(abi.REQUEST_VCPUS, vcpus=0b1011) is False
    channel = world.channel(0x70)
    world.signals.clear()
    assert world.call(abi.HC_REQUESTS_BIND, channel) == 0
    assert world.signals == [(MESSAGE, 0x70)]
    for pending in (abi.REQUEST_SYSRQ | abi.REQUEST_VCPUS, 0):
        put(world, abi.REQUESTS.pack(1, abi.REQUESTS.size, 0, 0, 0, b""))
        assert world.call(abi.HC_REQUESTS_GET, AT) == 0
        assert read(world, abi.REQUESTS)["pending"] == pending
    assert world.requests.ask(abi.REQUEST_POWEROFF) is True


# ---- scheduling and vCPUs


def test_ends(world: World) -> None:
    assert world.call(abi.HC_POWEROFF) is None
    assert world.call(abi.HC_REBOOT) is None
    length = put(world, b"because\n\0")
    assert world.call(abi.HC_CRASH, AT, length) is None
    assert world.call(abi.HC_CRASH, 0, 0) is None
    assert [end[1:] for end in world.ends] == [
        ("poweroff", "the guest powered off"),
        ("reboot", "the guest rebooted"),
        ("crash", "because"),
        ("crash", "the guest gave no reason"),
    ]


def test_crash_with_a_bad_buffer_is_no_crash(world: World) -> None:
    assert world.call(abi.HC_CRASH, RAM, 1) == -abi.EFAULT
    assert world.call(abi.HC_CRASH, 0, abi.MAX_BUFFER + 1) == -abi.EMSGSIZE
    assert world.ends == []


def start(cr0: int = 1 << 31 | 1, cr4: int = 1 << 5, efer: int = 5 << 8) -> bytes:
    return abi.VCPU_START.pack(1, abi.VCPU_START.size, 0, 1, 2, 3, 4, cr0, 0x9000, cr4, efer)


def test_vcpu_starts_with_what_its_record_says(world: World) -> None:
    put(world, start())
    assert world.call(abi.HC_VCPU_UP, 3, AT) == 0
    [(apic_id, made)] = world.ups
    assert (apic_id, made.rip, made.rsp, made.rdi, made.rsi, made.cr3) == (3, 1, 2, 3, 4, 0x9000)


@pytest.mark.parametrize(
    "record", [start(cr0=1), start(cr0=1 << 31), start(cr4=0), start(efer=1 << 8), b"\2\0", b""]
)
def test_vcpu_starts_in_64_bit_mode_only(world: World, record: bytes) -> None:
    put(world, record)
    assert world.call(abi.HC_VCPU_UP, 1, AT) == -abi.EINVAL
    assert world.ups == []


def test_yield_comes_back(world: World) -> None:
    assert world.call(abi.HC_YIELD) == 0
