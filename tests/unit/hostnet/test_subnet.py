"""Addresses: which networks can be had, and what a card makes of a prefix."""

from __future__ import annotations

import pytest

from kvmpv.errors import BadInput
from kvmpv.hostnet import subnet


def test_network_and_its_addresses() -> None:
    found = subnet.parse("192.168.77.0/24")
    assert str(found) == "192.168.77.0/24"
    assert found.address(1) == "192.168.77.1"
    assert found.size == 256


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10.0.0.1/24", "host bits"),
        ("10.0.0.0", "no prefix"),
        ("10.0.0.0/8", "no prefix"),
        ("10.0.0.0/30", "no prefix"),
        ("10.0.0/24", "no IPv4 network"),
        ("fd00::/64", "no IPv4 network"),
        ("8.8.8.0/24", "no private network"),
    ],
)
def test_network_that_cannot_be(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        subnet.parse(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        ("10.0.0.0/24", "10.0.0.0/16", True),
        ("10.0.1.0/24", "10.0.0.0/24", False),
        ("10.0.0.16/28", "10.0.0.0/24", True),
        ("10.0.0.16/28", "10.0.0.0/28", False),
    ],
)
def test_networks_that_meet(one: str, other: str, meet: bool) -> None:
    first, second = subnet.parse(one), subnet.parse(other)
    assert first.overlaps(second) == second.overlaps(first) == meet


def test_address_that_a_card_gives_itself() -> None:
    # RFC 4291, appendix A, has the same bit turned over.
    assert subnet.eui64("fd12:3456:789a:1", "52:4b:00:11:22:33") == (
        "fd12:3456:789a:1:504b:ff:fe11:2233"
    )


def test_local_prefix_is_stable_and_the_bridges_own() -> None:
    assert subnet.local_prefix("kvmpv0") == subnet.local_prefix("kvmpv0")
    assert subnet.local_prefix("kvmpv0") != subnet.local_prefix("kvmpv1")
    assert subnet.local_prefix("kvmpv0").startswith("fd")
