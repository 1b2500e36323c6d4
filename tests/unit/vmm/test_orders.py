"""The VMM's orders: what its starter writes is what it reads."""

from __future__ import annotations

import pytest

from kvmpv.vmm.orders import Orders, parse


def test_orders_are_read() -> None:
    orders = parse(
        [
            "name=web", "kvm=3", "memory=0:0xc0000000:4:0",
            "memory=0x100000000:0x1000:4:0xc0000000", "kernel=5", "vcpus=2", "max_vcpus=8",
            "cpu=host,-smap", "instance=00ff", "stats=1", "started=12345", "cmdline=a=b c",
        ]
    )  # fmt: skip
    assert (orders.name, orders.kvm, orders.kernel, orders.initrd) == ("web", 3, 5, -1)
    assert orders.memory == [(0, 3 << 30, 4, 0), (4 << 30, 4096, 4, 3 << 30)]
    assert (orders.vcpus, orders.max_vcpus, orders.cpu) == (2, 8, "host,-smap")
    assert (orders.instance, orders.stats, orders.started) == ("00ff", 1, 12345)
    assert orders.cmdline == "a=b c"


def test_nothing_is_there_unless_it_is_ordered() -> None:
    orders = parse([])
    descriptors = ("kvm", "kernel", "initrd", "terminal", "exec", "control", "end", "report")
    assert {getattr(orders, name) for name in (*descriptors, "lifeline", "trace")} == {-1}
    assert orders.memory == []


@pytest.mark.parametrize("argument", ["nonsense=1", "vcpus=two", "memory=0:1", ""])
def test_orders_that_nobody_gives_are_a_bug(argument: str) -> None:
    with pytest.raises((AttributeError, ValueError, TypeError)):
        parse([argument])


def test_every_order_has_a_value_without_being_given() -> None:
    orders = Orders()
    for name in Orders.__slots__:
        assert getattr(orders, name) is not None
