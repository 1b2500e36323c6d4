"""A worker's orders: what its command line can say, and what it cannot."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpv.dom0.orders import device, escape, parse, unescape
from kvmpv.errors import BadInput


def test_orders_are_read() -> None:
    orders = parse(
        [
            *("name=web", "control=3", "log=4", "lifeline=5", "ready=6", "restart=1"),
            *("device=0,blk,7,path=/a%2Cb,readonly=1", "device=47,rng,listen=8"),
        ]
    )
    assert (orders.name, orders.control, orders.log) == ("web", 3, 4)
    assert (orders.lifeline, orders.ready, orders.restart) == (5, 6, 1)
    first, second = orders.devices
    assert (first.number, first.kind, first.fd, first.listens) == (0, "blk", 7, False)
    assert first.options == {"path": "/a,b", "readonly": "1"}
    assert (second.number, second.kind, second.fd, second.listens) == (47, "rng", 8, True)


def test_a_device_may_come_without_its_socket() -> None:
    orders = device("3,net,mac=02:00:00:00:00:01", 9)
    assert (orders.number, orders.kind, orders.fd, orders.listens) == (3, "net", 9, False)
    assert orders.options == {"mac": "02:00:00:00:00:01"}
    assert device("3,rng", 9).options == {}


@pytest.mark.parametrize(
    "text", ["", "0", "0,blk", "x,blk,3", "0,blk,x", "0,blk,listen=", "48,blk,3", "-1,blk,3"]
)
def test_what_is_no_device_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        device(text)


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(BadInput, match="no order 'colour'"):
        parse(["colour=red"])


@given(st.text(st.characters(exclude_categories=[]), max_size=30))
def test_values_come_through_as_they_were(value: str) -> None:
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return
    escaped = escape(value)
    assert not set(escaped) & set(", \n\t")
    came = unescape(escaped)
    assert came.encode("utf-8", "surrogateescape") == value.encode("utf-8", "surrogateescape")
    assert device(f"0,blk,3,path={escaped}").options["path"] == came
