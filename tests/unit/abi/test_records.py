"""What the VMM packs and unpacks."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpv import abi

U16 = st.integers(0, 0xFFFF)
U32 = st.integers(0, 0xFFFFFFFF)
U64 = st.integers(0, 0xFFFFFFFFFFFFFFFF)


def at(layout: abi.Layout, record: bytes | bytearray, field: str, code: str) -> int:
    value: int = struct.unpack_from("<" + code, record, layout.offset[field])[0]
    return value


def test_start_info_packs_fields_at_their_offsets() -> None:
    info = abi.StartInfo()
    info.tsc_khz = 2_000_000
    info.cmdline = 0x20000
    info.generation = 7
    info.seed = bytes(range(32))
    record = info.pack()
    assert at(abi.START_INFO, record, "version", "H") == abi.START_INFO_VERSION
    assert at(abi.START_INFO, record, "size", "H") == len(record) == abi.START_INFO.size
    assert at(abi.START_INFO, record, "tsc_khz", "I") == 2_000_000
    assert at(abi.START_INFO, record, "cmdline", "Q") == 0x20000
    assert at(abi.START_INFO, record, "generation", "Q") == 7
    assert at(abi.START_INFO, record, "memory_size", "I") == abi.MEMORY_RANGE.size
    assert record[abi.START_INFO.offset["seed"] :][:32] == bytes(range(32))


def test_start_info_cuts_a_long_version_before_its_nul() -> None:
    info = abi.StartInfo()
    info.hypervisor = b"v" * 40
    assert info.pack()[abi.START_INFO.offset["hypervisor"] :] == b"v" * 31 + b"\0"


@given(size=U16, flags=U32, columns=U16, rows=U16)
def test_port_status_keeps_the_guests_size(size: int, flags: int, columns: int, rows: int) -> None:
    record = abi.pack_port_status(size, flags, columns, rows)
    assert abi.PORT_STATUS.unpack(record) == (1, size, flags, columns, rows, 0)


@given(pending=U32, sysrq=U32, vcpus=st.integers(0, (1 << 300) - 1))
def test_requests_hold_a_mask_of_256_vcpus(pending: int, sysrq: int, vcpus: int) -> None:
    record = abi.pack_requests(48, pending, sysrq, vcpus)
    assert len(record) == 48
    assert record[4:12] == struct.pack("<II", pending, sysrq)
    assert int.from_bytes(record[16:], "little") == vcpus & (1 << 256) - 1


@given(values=st.lists(U64, min_size=8, max_size=8))
def test_vcpu_start_comes_back_by_name(values: list[int]) -> None:
    start = abi.unpack_vcpu_start(abi.VCPU_START.pack(1, 72, 0, *values))
    names = ("rip", "rsp", "rdi", "rsi", "cr0", "cr3", "cr4", "efer")
    assert [getattr(start, name) for name in names] == values


def test_virtio_page_has_everything_at_its_offset() -> None:
    config = bytes(range(24))
    page = abi.pack_virtio_page(
        500, 2, 1 << 33, 0x4C04, [256, 128], status=0, generation=6, config=config
    )
    assert len(page) == abi.VIRTIO_PAGE.size
    assert page[:4] == struct.pack("<HH", 1, 500)
    assert at(abi.VIRTIO_PAGE, page, "features", "Q") == 1 << 33
    assert at(abi.VIRTIO_PAGE, page, "doorbell", "I") == 0x4C04
    assert at(abi.VIRTIO_PAGE, page, "queues", "I") == 2
    assert at(abi.VIRTIO_PAGE, page, "generation", "I") == 6
    assert at(abi.VIRTIO_PAGE, page, "config_size", "I") == len(config)
    assert at(abi.VIRTIO_PAGE, page, "removed", "I") == 0
    assert page[abi.VIRTIO_PAGE.offset["ring_max"] :][:6] == struct.pack("<HHH", 256, 128, 0)
    assert page[abi.VIRTIO_PAGE.offset["config"] :][:24] == config


@pytest.mark.parametrize("field", ["status", "generation", "removed"])
def test_live_fields_are_written_in_place(field: str) -> None:
    page = bytearray(abi.VIRTIO_PAGE.size)
    abi.poke_u32(memoryview(page), field, 0x01020304)
    assert at(abi.VIRTIO_PAGE, page, field, "I") == 0x01020304
    assert sum(page) == 10


@given(U16, U16, U32, st.lists(U64, min_size=3, max_size=3))
def test_virtio_queue_comes_back_by_name(
    index: int, ring_size: int, channel: int, rings: list[int]
) -> None:
    record = abi.VIRTIO_QUEUE.pack(1, 40, index, ring_size, channel, 7, *rings)
    queue = abi.unpack_virtio_queue(record)
    assert (queue.index, queue.ring_size, queue.channel) == (index, ring_size, channel)
    assert [queue.descriptors, queue.driver, queue.device] == rings


@pytest.mark.parametrize(
    ("version", "size", "valid"), [(1, 16, True), (1, 99, True), (1, 15, False), (2, 16, False)]
)
def test_record_may_grow_but_not_shrink(version: int, size: int, valid: bool) -> None:
    head = struct.pack("<HH", version, size)
    assert abi.record_is_valid(head, abi.PORT_STATUS_VERSION, abi.PORT_STATUS) is valid


@given(st.lists(st.tuples(U64, U32, U32), min_size=1, max_size=20), st.integers(16, 40), U16)
def test_messages_are_read_at_their_stride(
    messages: list[tuple[int, int, int]], stride: int, size: int
) -> None:
    size = max(size, 8)
    header = abi.EVTCHN_BIND.pack(1, size, len(messages), stride)
    assert abi.unpack_evtchn_header(header) == (size, len(messages), stride)
    body = b"".join(abi.EVTCHN_MESSAGE.pack(*each).ljust(stride, b"\xff") for each in messages)
    assert abi.unpack_evtchn_messages(body, len(messages), stride) == messages


@pytest.mark.parametrize(
    "header", [(2, 8, 1, 16), (1, 7, 1, 16), (1, 8, 0, 16), (1, 8, 1025, 16), (1, 8, 1, 15)]
)
def test_bad_bind_header_is_none(header: tuple[int, int, int, int]) -> None:
    assert abi.unpack_evtchn_header(abi.EVTCHN_BIND.pack(*header)) is None


@pytest.mark.parametrize(
    ("address", "data", "valid"),
    [
        (0xFEE00000, 0x20, True),
        (0xFEEFF00C, 0x1FF, True),
        (0xFEDFFFFF, 0x20, False),
        (0xFEF00000, 0x20, False),
        (0x1_FEE00000, 0x20, False),
        (0xFEE00000, 0x0F, False),
        (0xFEE00000, 0x220, False),
        (0xFEE00000, 0x420, False),
        (0xFEE00000, 0x720, False),
        (0xFEE00000, 0x8020, False),
    ],
)
def test_messages_that_a_channel_may_have(address: int, data: int, valid: bool) -> None:
    assert abi.message_is_valid(address, data) is valid


def test_tables_of_start_info() -> None:
    assert abi.pack_apic_ids([0, 1, 254]) == struct.pack("<3I", 0, 1, 254)
    memory = abi.pack_memory_map([(0, 0x9E000, 1), (1 << 32, 5, 2)])
    assert list(abi.MEMORY_RANGE.unpack_all(memory)) == [(0, 0x9E000, 1, 0), (1 << 32, 5, 2, 0)]
