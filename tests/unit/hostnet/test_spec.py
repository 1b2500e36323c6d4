"""What may stand behind --net, and what may not."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpv.errors import BadInput
from kvmpv.hostnet import mac_for, parse, plan
from kvmpv.hostnet.spec import is_host_name


def test_everything_at_once() -> None:
    spec = parse(
        "nat,mac=52:54:00:AB:cd:ef,mtu=9000,queues=4,vhost=off,forward=tcp:8080:80,"
        "forward=udp:127.0.0.1:5353:53,antispoof,bps=10M,bps_burst=20M,pps=1000,pps_burst=50,"
        "subnet=10.1.0.0/24"
    )
    assert spec.kind == "nat"
    assert spec.mac == "52:54:00:ab:cd:ef"
    assert (spec.mtu, spec.queues, spec.vhost, spec.antispoof) == (9000, 4, "off", True)
    assert [str(one) for one in spec.forwards] == ["tcp:8080:80", "udp:127.0.0.1:5353:53"]
    assert (spec.bps, spec.bps_burst, spec.pps, spec.pps_burst) == (10 << 20, 20 << 20, 1000, 50)
    assert spec.subnet == "10.1.0.0/24"


def test_kinds_with_a_target() -> None:
    assert parse("bridge=fifteen-letters").target == "fifteen-letters"
    assert parse("tap=t0,antispoof=off").target == "t0"
    assert parse("vhost-user=/run/socket").target == "/run/socket"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is no network"),
        ("bride=br0", "'bride=br0' is no network"),
        ("bridge", "'bridge' is no network"),
        ("nat=1", "'nat=1' is no network"),
        ("bridge=", "wants a name"),
        ("bridge=a/b", "no name of an interface"),
        ("tap=sixteen-letters-s", "no name of an interface"),
        ("tap=t\udcff", "no name of an interface"),
        ("nat,mac=52:54:00", "no MAC address"),
        ("nat,mac=52:54:00:00:00:0g", "no MAC address"),
        ("nat,mac=53:54:00:00:00:01", "is a group's"),
        ("nat,mac=00:00:00:00:00:00", "nobody's"),
        ("nat,mtu=1000", "MTU of 1000"),
        ("tap=t0,mtu=60", "MTU of 60"),
        ("nat,mtu=70000", "MTU of 70000"),
        ("nat,mtu=-1", "makes no sense"),
        ("nat,queues=0", "makes no sense"),
        ("nat,queues=32", "32 pairs of queues"),
        ("nat,vhost=maybe", "vhost=maybe is unknown"),
        ("nat,forward=tcp:80", "is no port"),
        ("nat,forward=sctp:80:80", "no port to forward"),
        ("nat,forward=tcp:0:80", "is no port"),
        ("nat,forward=tcp:80:65536", "is no port"),
        ("nat,forward=tcp:host:80:80", "no IPv4 address"),
        ("nat,forward=udp:224.0.0.1:80:80", "no host's address"),
        ("bridge=br0,forward=tcp:80:80", "forwards no ports"),
        ("bridge=br0,subnet=10.0.0.0/24", "no subnet"),
        ("tap=t0,antispoof", "no anti-spoofing"),
        ("nat,bps=0", "makes no sense"),
        ("nat,bps=100", "lets nothing through"),
        ("nat,bps=fast", "makes no sense"),
        ("nat,bps=99999T", "cannot be as large"),
        ("nat,pps=1,pps_burst=99999999999999999999", "cannot be as large"),
        ("nat,bps_burst=1M", "limits nothing"),
        ("nat,pps=1000000,pps_burst=1", "is too small"),
        ("nat,bps=1M,vhost=on", "cannot be limited"),
        ("user,pps=100", "has no limits"),
        ("nat,colour=red", "does not know 'colour=red'"),
        ("nat,mac=", "wants a value"),
    ],
)
def test_bad_input_is_said_in_one_line(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        parse(text)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_junk_is_bad_input_or_a_specification(text: str) -> None:
    for whole in (text, f"nat,{text}", f"nat,forward={text}", f"nat,mac={text}", f"tap={text}"):
        with suppress(BadInput):
            assert parse(whole).kind


def test_mac_is_stable_local_and_one_cards() -> None:
    assert mac_for("web", 0) == mac_for("web", 0)
    macs = {mac_for(f"d{number}", index) for number in range(500) for index in range(4)}
    assert len(macs) == 2000
    assert {int(mac[:2], 16) & 3 for mac in macs} == {2}


def test_plan_refuses_what_two_cards_share() -> None:
    specs = [parse("user,mac=52:54:00:00:00:01"), parse("user,mac=52:54:00:00:00:01")]
    with pytest.raises(BadInput, match="52:54:00:00:00:01 is given twice"):
        plan("web", specs)
    specs = [parse("user,forward=tcp:80:80"), parse("user,forward=tcp:80:81")]
    with pytest.raises(BadInput, match="tcp port 80 is forwarded twice"):
        plan("web", specs)
    specs[1] = parse("user,forward=tcp:127.0.0.1:80:81")
    with pytest.raises(BadInput, match="tcp port 80 is forwarded twice"):
        plan("web", specs)
    specs[0] = parse("user,forward=tcp:127.0.0.2:80:80")
    plan("web", specs)
    specs = [parse("user,forward=tcp:80:80"), parse("user,forward=udp:80:81")]
    plan("web", specs)
    assert specs[0].mac == mac_for("web", 0)
    assert specs[1].mac == mac_for("web", 1)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        *(("web", True), ("web-1.example", True), ("-web", False), ("we_b", False)),
        *(("a..b", False), ("1.2.3", True), ("10.0.0.5", False)),
    ],
)
def test_names_that_hosts_may_have(text: str, good: bool) -> None:
    assert is_host_name(text) == good
