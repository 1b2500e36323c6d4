"""``kvmpv net`` says what there is."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from kvmpv.cli.net import app
from tests.host.hostnet.guest import Guest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.host.hostnet.conftest import Attach
    from tests.host.net.namespace import Namespace


def said(host: Namespace, *words: str) -> str:
    result = host.call(CliRunner().invoke, app, list(words))
    assert result.exit_code == 0, result.output
    return result.output


def test_nothing_is_said_of_nothing(host: Namespace) -> None:
    assert said(host, "list") == ""
    assert said(host, "status") == ""
    assert json.loads(said(host, "status", "--json")) == []


def test_everybody_may_look_whatever_the_umask(
    attach: Attach, host: Namespace, tmp_path: Path
) -> None:
    before = os.umask(0o077)
    try:
        attach("web", "nat")
    finally:
        os.umask(before)
    [folder] = (tmp_path / "kvmpv-net").iterdir()
    for path in (folder.parent, folder, *(folder / name for name in ("users", "users/web:0"))):
        assert path.stat().st_mode & 0o444 == 0o444
    assert (folder / "network").stat().st_mode & 0o777 == 0o644


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_networks_and_cards_are_listed(attach: Attach, host: Namespace, tmp_path: Path) -> None:
    host.ip("link add br0 type bridge")
    card = attach("web", "nat,forward=tcp:8080:80")
    attach("web", "bridge=br0", 1)
    attach("db", "nat,antispoof")
    with Guest(card) as guest:
        _, router, *_ = guest.dhcp(tmp_path)
        guest.run("busybox", "ping", "-c1", "-W5", router)
        nat, bridge = json.loads(said(host, "status", "--json"))
    assert (nat["name"], nat["kind"], nat["address"]) == ("kvmpv0", "nat", router)
    assert nat["dnsmasq"]
    assert [lease[1] for lease in nat["leases"]] == [card.address]
    db, web = nat["cards"]
    assert (db["domain"], db["antispoof"], db["leased"]) == ("db", True, False)
    assert (web["domain"], web["leased"], web["forwards"]) == ("web", True, ["tcp:8080:80"])
    assert web["mac"] == card.mac
    assert card.address in web["seen"]
    assert web["traffic"]["sent_packets"] >= 3
    assert web["traffic"]["received_bytes"] > 0
    assert (bridge["name"], bridge["kind"]) == ("br0", "bridge")
    assert bridge["cards"][0]["index"] == 1
    lines = said(host, "list").splitlines()
    assert [line.split()[:3] for line in lines] == [["kvmpv0", "nat", "2"], ["br0", "bridge", "1"]]
    shown = said(host, "status")
    assert f"({db['address']})" in shown
    assert card.mac in shown
    counts = {one["name"]: one["cards"] for one in json.loads(said(host, "list", "--json"))}
    assert counts == {"kvmpv0": 2, "br0": 1}
