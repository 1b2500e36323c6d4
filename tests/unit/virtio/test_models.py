"""What a driver is offered and shown, by kind of device."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpv.errors import BadInput, VhostUserError
from kvmpv.virtio import models, spec

EVERYTHING = (1 << 64) - 1
MAC = "52:54:00:12:34:56"
NEEDED = spec.mask(spec.F_VERSION_1, spec.F_ACCESS_PLATFORM)


def has(features: int, *bits: int) -> bool:
    return all(features >> bit & 1 for bit in bits)


KINDS = [
    models.model("blk", {}),
    models.model("blk", {"queues": "4"}),
    models.model("net", {"mac": MAC}),
    models.model("net", {"mac": MAC, "queues": "4", "mtu": "9000"}),
    models.model("rng", {}),
    models.model("vsock", {}),
    models.model("fs", {"tag": "home"}),
]


@pytest.mark.parametrize("model", KINDS, ids=lambda each: type(each).__name__)
@given(backend=st.integers(0, EVERYTHING), accepted=st.integers(0, EVERYTHING))
def test_driver_gets_what_both_sides_have(model: models.Model, backend: int, accepted: int) -> None:
    offered = model.offered(backend)
    assert has(offered, spec.F_VERSION_1, spec.F_ACCESS_PLATFORM)
    assert not offered & ~(backend | model.own | NEEDED)
    assert not has(offered, spec.VHOST_USER_F_PROTOCOL_FEATURES)
    assert not has(offered, spec.F_RING_PACKED)
    told = model.for_backend(accepted & offered, backend)
    assert not has(told, spec.F_ACCESS_PLATFORM)
    assert not told & ~backend
    assert not model.acceptable(accepted | 1 << spec.F_RING_PACKED, offered)
    assert model.acceptable(NEEDED, offered)
    assert not model.acceptable(1 << spec.F_VERSION_1, offered)


def test_disk_shows_the_backends_config_with_our_number_of_queues() -> None:
    model = models.model("blk", {"queues": "3"})
    config = spec.BLK_CONFIG.pack(2048, *[0] * 4, 0, 512, 0, 0, 0, 0, 1, 0, 1, *[0] * 6)
    assert model.refresh(lambda offset, size: config[offset : offset + size])
    assert spec.BLK_CONFIG.unpack(model.config)[0] == 2048
    assert spec.BLK_CONFIG.unpack(model.config)[13] == 3
    assert not model.refresh(lambda offset, size: config[offset : offset + size])
    with pytest.raises(VhostUserError):
        model.refresh(lambda *_: b"short")


def test_only_the_write_back_switch_of_a_disk_may_be_written() -> None:
    model = models.model("blk", {})
    wce = 1 << spec.BLK_F_CONFIG_WCE
    allowed = [
        (offset, length)
        for offset in range(61)
        for length in range(9)
        if model.may_write(offset, length, wce)
    ]
    assert allowed == [(spec.BLK_CONFIG_WCE_OFFSET, 1)]
    assert not model.may_write(spec.BLK_CONFIG_WCE_OFFSET, 1, 0)


def test_network_shows_its_orders() -> None:
    model = models.model("net", {"mac": MAC, "queues": "4", "mtu": "9000"})
    assert spec.NET_CONFIG.unpack(model.config) == (bytes.fromhex("525400123456"), 1, 4, 9000)
    assert len(model.rings) == 9
    offered = model.offered(0)
    assert has(offered, spec.NET_F_MQ, spec.NET_F_CTRL_VQ, spec.NET_F_MTU, spec.NET_F_MAC)
    assert model.control_queue(offered) == 8
    assert model.control_queue(1 << spec.NET_F_CTRL_VQ) == 2  # 5.1.2: where MQ is not used
    assert model.control_queue(0) == -1
    assert not model.acceptable(NEEDED | 1 << spec.NET_F_MQ, offered)  # it needs the queue


def test_folder_shows_its_tag() -> None:
    model = models.model("fs", {"tag": "home", "queues": "2"})
    assert model.config == b"home".ljust(36, b"\0") + b"\2\0\0\0"
    assert len(model.rings) == 3


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("tape", {}),
        ("blk", {"queues": "0"}),
        ("blk", {"queues": "65"}),
        ("blk", {"queues": "many"}),
        ("net", {}),
        ("net", {"mac": "52:54:00:12:34"}),
        ("net", {"mac": "53:54:00:12:34:56"}),
        ("net", {"mac": "00:00:00:00:00:00"}),
        ("net", {"mac": MAC, "queues": "32"}),
        ("net", {"mac": MAC, "mtu": "65536"}),
        ("fs", {}),
        ("fs", {"tag": "x" * 37}),
    ],
)
def test_orders_that_cannot_be_are_refused(kind: str, options: dict[str, str]) -> None:
    with pytest.raises(BadInput):
        models.model(kind, options)
