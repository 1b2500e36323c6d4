"""One definition of the options: command line, file and keywords mean the same, good and bad."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpv.abi import address_map
from kvmpv.errors import BadInput
from kvmpv.toolstack.config import DomainConfig, make, parse_arguments, parse_size
from kvmpv.toolstack.options import BY_NAME, OPTIONS, Option

if TYPE_CHECKING:
    from collections.abc import Mapping

# A value of each option that is not its default: as a command line has it, and as it is meant.
VALUES: dict[str, tuple[str, object]] = {
    "kernel": ("a/vmlinux", "a/vmlinux"),
    "initrd": ("a b.cpio", "a b.cpio"),
    "memory": ("64M", 64 << 20),
    "vcpus": ("3", 3),
    "max_vcpus": ("9", 9),
    "cmdline": ("quiet x=--y", "quiet x=--y"),
    "exec": ("uname -r", "uname -r"),
    "console": ("none", "none"),
    "disks": ("null:1G,readonly", ["null:1G,readonly"]),
    "nets": ("nat", ["nat"]),
    "shares": ("a,tag=b", ["a,tag=b"]),
    "root": ("a/root", "a/root"),
    "vsock": ("a/vsock", "a/vsock"),
    "rng": ("rate=1M", "rate=1M"),
    "name": ("web-1", "web-1"),
    "cpu": ("host,-smap", "host,-smap"),
    "stats": ("", True),
    "json": ("", True),
    "trace": ("a/trace", "a/trace"),
}
OF_A_DOMAIN = [option for option in OPTIONS if option.name != "config"]


def values(config: DomainConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in config.__slots__ if name != "devices"}


def forms(option: Option, text: str) -> list[list[str]]:
    """Return the ways to write an option on a command line."""
    if option.kind is bool:
        return [[option.flag]]
    short = [[option.short, text]] if option.short else []
    return [[option.flag, text], [f"{option.flag}={text}"], *short]


def from_file(folder: Path, given: Mapping[str, object]) -> DomainConfig:
    path = folder / "domain.toml"
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in given.items()))
    return make({"config": str(path)})


def test_every_option_has_a_value_here() -> None:
    assert list(VALUES) == [option.name for option in OF_A_DOMAIN]


@pytest.mark.parametrize("option", OF_A_DOMAIN, ids=lambda option: option.name)
def test_flag_file_and_keyword_mean_the_same(option: Option, tmp_path: Path) -> None:
    text, meant = VALUES[option.name]
    expected = {**values(make({})), option.name: meant}
    if option.name == "vcpus":
        expected["max_vcpus"] = meant
    for arguments in forms(option, text):
        assert values(make(parse_arguments(arguments))) == expected
    assert values(make({option.name: meant})) == expected
    assert values(from_file(tmp_path, {option.name: meant})) == expected
    if option.kind is not bool:
        assert values(from_file(tmp_path, {option.name: text})) == expected


def test_list_is_given_by_repeating_and_in_a_file_as_an_array(tmp_path: Path) -> None:
    config = make(parse_arguments(["--disk", "null:1M", "--disk=null:2M", "--net", "none"]))
    assert config.disks == ["null:1M", "null:2M"]
    path = tmp_path / "domain.toml"
    path.write_text('disks = ["null:1M"]\n[[nets]]\nkind = "nat"\n')
    config = make({"config": str(path)})
    assert [repr(device) for device in config.devices] == [
        "Device(blk: --disk null:1M)",
        "Device(net: --net nat)",
        "Device(rng: --rng on)",
    ]


def test_all_at_once_and_the_command_line_wins(tmp_path: Path) -> None:
    path = tmp_path / "domain.toml"
    path.write_text('memory = "32M"\nvcpus = 2\nstats = true\n')
    config = make(parse_arguments(["--vcpus", "4", "--config", str(path)]))
    assert (config.memory, config.vcpus, config.stats) == (32 << 20, 4, True)


def test_paths_may_be_path_objects() -> None:
    assert make({"kernel": Path("a") / "b"}).kernel == "a/b"


@pytest.mark.parametrize("option", OF_A_DOMAIN, ids=lambda option: option.name)
@pytest.mark.parametrize("bad", [1.5, None, [], {}, -1, "\0"])
def test_value_of_another_kind_is_refused(option: Option, bad: object) -> None:
    if option.kind == "list" and bad == []:
        assert make({option.name: bad}).devices == []
        return
    with pytest.raises(BadInput) as caught:
        make({option.name: bad})
    assert caught.value.hint


def test_numbers_are_no_switches() -> None:
    for name in ("stats", "json"):
        with pytest.raises(BadInput, match="true or false"):
            make({name: 1})
    for name in ("memory", "vcpus"):
        with pytest.raises(BadInput):
            make({name: True})


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("4096", 4096), ("1K", 1024), ("64M", 64 << 20), ("2g", 2 << 30), ("1T", 1 << 40)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@given(st.text(max_size=8))
def test_any_size_is_at_worst_bad_input(text: str) -> None:
    try:
        assert parse_size(text) >= 0
    except BadInput:
        pass


@given(
    st.lists(
        st.sampled_from(
            [*(option.flag for option in OPTIONS if option.name != "config"), "-m", "x"]
        )
        | st.text(max_size=6),
        max_size=6,
    )
)
def test_any_command_line_is_at_worst_bad_input(arguments: list[str]) -> None:
    try:
        config = make(parse_arguments(arguments))
    except BadInput:
        return
    assert 1 <= config.vcpus <= config.max_vcpus <= address_map.MAX_VCPUS
    assert config.memory >= address_map.MEMORY_MIN


@given(st.dictionaries(st.sampled_from(sorted(BY_NAME)), st.none() | st.integers() | st.text()))
def test_any_keywords_are_at_worst_bad_input(given_: dict[str, object]) -> None:
    given_.pop("config", None)
    try:
        make(given_)
    except BadInput:
        pass


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "n" * 63, "x.service"])
def test_good_names(name: str) -> None:
    assert make({"name": name}).name == name


@pytest.mark.parametrize("name", ["a/b", "..", ".a", "-a", "a b", "a\n", "ä", "n" * 64, "a=b"])
def test_bad_names(name: str) -> None:
    with pytest.raises(BadInput, match="is no name"):
        make({"name": name})


def test_memory_is_at_most_the_hosts() -> None:
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    assert make({"memory": host << 20}).memory == host << 20
    with pytest.raises(BadInput, match="more than this host has"):
        make({"memory": host + 1 << 20})


@pytest.mark.parametrize(
    "content", [b"a = \xff", b"= 1", b"[domain]\nvcpus = 1", b"vcpus = 1\nvcpus = 2"]
)
def test_bad_file_is_bad_input(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "domain.toml"
    path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        make({"config": str(path)})
    assert caught.value.hint
