"""A host of its own for each test: a network namespace, and a folder for what is made in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvmpv import hostnet
from tests.host.net.namespace import Namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Attach = Callable[..., hostnet.Attachment]

SETTINGS = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")


def dnsmasqs(folder: Path) -> list[str]:
    """Return the processes that serve a folder's network."""
    found = []
    for name in os.listdir("/proc"):
        try:
            words = (Path("/proc") / name / "cmdline").read_text().split("\0")
        except OSError:
            continue
        if any(str(folder) in word for word in words if word.startswith("--conf-file=")):
            found.append(name)
    return found


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Namespace]:
    """Return a host; when the test ends nothing of ours may be left on it."""
    monkeypatch.setenv("KVMPV_RUN_DIR", str(tmp_path))
    with Namespace() as made:
        before = made.interfaces()
        settings = made.run("sysctl", *SETTINGS)
        yield made
        kvmpv = {name for name in made.interfaces() - before if name.startswith(("kv", "tap"))}
        assert kvmpv == set()
        assert made.run("nft", "list", "ruleset") == ""
        assert not (tmp_path / "kvmpv-net").exists()
        assert dnsmasqs(tmp_path) == []
        assert made.run("sysctl", *SETTINGS) == settings


@pytest.fixture
def attach(host: Namespace) -> Iterator[Attach]:
    """Return what attaches a card to the host; each is released when the test ends."""
    cards: list[hostnet.Attachment] = []

    def make(domain: str, text: str, index: int = 0) -> hostnet.Attachment:
        spec = hostnet.parse(text)
        spec.mac = spec.mac or hostnet.mac_for(domain, index)
        host.call(hostnet.plan, domain, [spec])
        cards.append(host.call(hostnet.attach, domain, index, spec))
        return cards[-1]

    yield make
    for card in cards:
        host.call(card.release)
