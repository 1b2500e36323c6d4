"""What a host or a user has wrong is said in one line, and nothing is made."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from kvmpv import hostnet
from kvmpv.errors import BadInput, HostError
from kvmpv.hostnet import attachment, links
from tests.host.hostnet.test_crashes import CHECKOUT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.host.hostnet.conftest import Attach
    from tests.host.net.namespace import Namespace

NOBODY = 65534


def test_missing_bridge(attach: Attach) -> None:
    with pytest.raises(BadInput, match="there is no bridge br7") as caught:
        attach("web", "bridge=br7")
    assert "ip link add br7 type bridge" in caught.value.hint


def test_interface_that_is_no_bridge(attach: Attach) -> None:
    with pytest.raises(BadInput, match="the interface lo is no bridge"):
        attach("web", "bridge=lo")


def test_missing_tap(attach: Attach) -> None:
    with pytest.raises(BadInput, match="there is no tap t7"):
        attach("web", "tap=t7")


def test_interface_that_is_no_tap(attach: Attach, host: Namespace) -> None:
    host.ip("tuntap add dev t0 mode tun")
    for name in ("lo", "t0"):
        with pytest.raises(BadInput, match=f"the interface {name} is no tap"):
            attach("web", f"tap={name}")


def test_tap_of_another_owner(attach: Attach, host: Namespace) -> None:
    host.ip(f"tuntap add dev t0 mode tap user {NOBODY}")
    with pytest.raises(BadInput, match=f"the tap t0 belongs to user {NOBODY}"):
        attach("web", "tap=t0")


def test_tap_that_is_in_use(attach: Attach, host: Namespace) -> None:
    host.ip("tuntap add dev t0 mode tap")
    attach("web", "tap=t0")
    with pytest.raises(BadInput, match="the tap t0 is in use"):
        attach("db", "tap=t0")


def test_tap_with_too_few_queues(attach: Attach, host: Namespace) -> None:
    host.ip("tuntap add dev t0 mode tap")
    with pytest.raises(BadInput, match="one queue only"):
        attach("web", "tap=t0,queues=2")


def test_same_tap_twice(host: Namespace) -> None:
    host.ip("tuntap add dev t0 mode tap")
    specs = [hostnet.parse("tap=t0") for _ in range(2)]
    with pytest.raises(BadInput, match="the tap t0 is given twice"):
        host.call(hostnet.plan, "web", specs)


def test_mac_of_another_domain(attach: Attach, host: Namespace) -> None:
    host.call(links.make_bridge, "br0")
    attach("web", "bridge=br0,mac=52:54:00:00:00:01")
    with pytest.raises(BadInput, match="the domain web has the MAC 52:54:00:00:00:01"):
        attach("db", "bridge=br0,mac=52:54:00:00:00:01")


def test_card_that_a_domain_has_already(attach: Attach, host: Namespace) -> None:
    host.call(links.make_bridge, "br0")
    attach("web", "bridge=br0")
    with pytest.raises(BadInput, match="the domain web has a card 0 by now"):
        attach("web", "bridge=br0,mac=52:54:00:00:00:01")


def test_port_that_is_in_use(attach: Attach, host: Namespace) -> None:
    with host.socket(socket.AF_INET, socket.SOCK_STREAM) as other:
        other.bind(("127.0.0.1", 8080))
        other.listen()
        with pytest.raises(BadInput, match="tcp port 8080 of this host is in use"):
            attach("web", "nat,forward=tcp:8080:80")


def test_address_that_is_not_the_hosts(attach: Attach) -> None:
    with pytest.raises(BadInput, match=r"203\.0\.113\.9 is no address of this host"):
        attach("web", "nat,forward=tcp:203.0.113.9:8080:80")


@pytest.mark.parametrize(("tool", "package"), [("nft", "nftables"), ("dnsmasq", "dnsmasq-base")])
def test_missing_tool(
    attach: Attach, monkeypatch: pytest.MonkeyPatch, tool: str, package: str
) -> None:
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: not str(path).endswith(f"/{tool}") and access(path, mode)
    )
    with pytest.raises(HostError, match=f"there is no {tool} on this host") as caught:
        attach("web", "nat")
    assert caught.value.hint == f"apt install {package}"


def test_kernel_that_cannot_carry(attach: Attach, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachment, "VHOST", "/dev/none")
    with pytest.raises(HostError, match="this user has no /dev/none") as caught:
        attach("web", "nat,vhost=on")
    assert "modprobe vhost_net" in caught.value.hint


@pytest.mark.parametrize("spec", ["nat", "bridge=br0"])
def test_no_right_to_make_taps(host: Namespace, tmp_path: Path, spec: str) -> None:
    host.call(links.make_bridge, "br0")
    done = host.call(
        subprocess.run,
        [sys.executable, "-m", "tests.host.hostnet.user", "web", spec, str(NOBODY)],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert re.match(r"error this user has no right to make taps \(.*--net user\)\n$", done.stdout)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        ("dnsmasq", "dnsmasq does not start: it cannot be"),
        ("nft", "nft refuses our rules: it cannot be"),
    ],
)
def test_tool_that_refuses(
    attach: Attach, host: Namespace, tmp_path: Path, tool: str, message: str
) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / tool).write_text("#!/bin/sh\necho it cannot be >&2\nexit 3\n")
    (folder / tool).chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        with pytest.raises(HostError, match=message):
            attach("web", "nat")
    assert "kvmpv0" not in host.interfaces()
    host.call(hostnet.sweep)
