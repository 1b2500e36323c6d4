"""A Debian image's recipe is checked first, and its root is finished the way systemd wants it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from kvmpv.errors import BadInput
from kvmpv.images import debian, debian_tree

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"suite": "../etc"}, "is no suite of Debian"),
        ({"suite": "--help"}, "is no suite of Debian"),
        ({"hostname": ""}, "is no host name"),
        ({"hostname": "a b"}, "is no host name"),
        ({"hostname": "h" * 64}, "is no host name"),
        ({"packages": ["fio", "-o"]}, "'-o' is no name of a package"),
        ({"packages": ["x\ny"]}, "is no name of a package"),
    ],
)
def test_recipes_that_cannot_be_are_refused(given: dict[str, str], what: str) -> None:
    with pytest.raises(BadInput, match=what):
        debian.recipe(**given)


def test_order_of_packages_makes_no_other_image() -> None:
    one = debian.recipe(packages=["fio", "iperf3", "fio"])
    assert one == debian.recipe(packages=["iperf3", "fio"])
    assert one.path != debian.recipe().path


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("I: x\nErr:1 Temporary failure resolving 'a'\nE: it failed\n",
         "Err:1 Temporary failure resolving 'a'"),
        ("E: Unable to locate package nix\nE: apt-get failed\n",
         "Unable to locate package nix"),
        ("W: strange\nE: apt-get failed\n", "apt-get failed"),
        ("", "it said nothing"),
    ],
)  # fmt: skip
def test_reason_of_a_failure_is_the_line_that_tells_most(log: str, reason: str) -> None:
    assert debian.reason(log) == reason


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("usr/share/man/man1", "var/cache/apt", "var/lib/apt/lists", "etc"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "etc/shadow").write_text("root:*:1:0:99999:7:::\nmail:*:1:0:99999:7:::\n")
    (tmp_path / "etc/resolv.conf").write_text("nameserver 192.0.2.1\n")
    (tmp_path / "usr/share/man/man1/ls.1").write_text("ls")
    agent = tmp_path / "built-agent"
    agent.write_bytes(b"\x7fELF")
    debian_tree.finish(tmp_path, "box", agent)
    return tmp_path


def test_root_has_no_password_and_others_none_that_works(root: Path) -> None:
    lines = (root / "etc/shadow").read_text().splitlines()
    assert lines == ["root::1:0:99999:7:::", "mail:*:1:0:99999:7:::"]


def test_each_copy_gets_a_machine_id_of_its_own(root: Path) -> None:
    assert (root / "etc/machine-id").read_text() == ""


def test_agent_is_a_service_that_starts(root: Path) -> None:
    wanted = root / "etc/systemd/system/multi-user.target.wants/kvmpv-agent.service"
    target = os.readlink(wanted)
    assert f"ExecStart=/{debian_tree.AGENT} --service" in (root / target[1:]).read_text()
    assert (root / debian_tree.AGENT).stat().st_mode & 0o777 == 0o755


def test_slow_units_are_masked(root: Path) -> None:
    unit = root / "etc/systemd/system/e2scrub_reap.service"
    assert os.readlink(unit) == "/dev/null"


def test_this_machines_own_files_are_not_in_it(root: Path) -> None:
    assert (root / "etc/hostname").read_text() == "box\n"
    assert os.readlink(root / "etc/resolv.conf").startswith("../run/systemd/resolve/")
    assert not list((root / "usr/share/man").iterdir())
    assert (root / "var/lib/apt/lists/partial").is_dir()
