"""What the device options mean: subjects, keys, numbers, and what cannot be together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpv.errors import BadInput
from kvmpv.toolstack import devices, specs
from kvmpv.toolstack.config import make

if TYPE_CHECKING:
    from collections.abc import Callable

PARSERS: dict[str, Callable[[str], object]] = {
    "disk": devices.disk,
    "net": devices.net,
    "share": devices.share,
    "root": devices.root,
    "vsock": devices.vsock,
}

# What is given, what is wrong with it, how to mend it.
BAD = {
    "disk-option": ("disk", "d,redonly", "--disk d: unknown option 'redonly'",
                    "did you mean readonly?"),
    "disk-cache": ("disk", "d,cache=fast", "--disk d: cache=fast cannot be",
                   "cache is one of none, writeback, unsafe"),
    "disk-nothing": ("disk", "", "--disk names nothing", "such as --disk disk.img,readonly"),
    "disk-no-id": ("disk", "id=", "--disk id= names nothing", "such as --disk disk.img,readonly"),
    "disk-twice": ("disk", "d,iops=1,iops=2", "--disk d: iops is given twice", "give it once"),
    "disk-format": ("disk", "d,format=iso",
                    "--disk d: format=iso cannot be", "format is one of auto, raw, qcow2*"),
    "disk-serial": ("disk", "d,serial=" + "s" * 21, "--disk d: serial=sssssssssssssssssssss"
                    " is too long", "at most 20 bytes are possible"),
    "disk-serial-comma": ("disk", "d,serial=a,,b", "--disk d: serial='a,b' cannot be",
                          "letters, digits, '.', '_' and '-' can"),
    "disk-logical": ("disk", "d,logical=1000", "--disk d: logical=1000 cannot be",
                     "block sizes are powers of two"),
    "disk-big-blocks": ("disk", "d,logical=8192", "--disk d: logical=8192 cannot be",
                        "512 to 4096 can"),
    "disk-physical": ("disk", "d,logical=4096,physical=512",
                      "--disk d: physical=512 is less than logical=4096", "make it at least that"),
    "disk-queues": ("disk", "d,queues=0", "--disk d: queues=0 cannot be", "1 to 16 can"),
    "disk-no-iops": ("disk", "d,iops=0", "--disk d: iops=0 cannot be",
                     "1 to 1000000000000000 can"),
    "disk-iops": ("disk", f"d,iops={10**15 + 1}", "--disk d: iops=1000000000000001 cannot be",
                  "1 to 1000000000000000 can"),
    "disk-negative": ("disk", "d,bps=-1M", "--disk d: bps=-1M cannot be",
                      "1 to 1000000000000000 can"),
    "disk-burst": ("disk", "d,iops=100,iops_burst=50",
                   "--disk d: iops_burst is less than iops", "a burst is what goes beyond"),
    "disk-burst-alone": ("disk", "d,bps_burst=1M", "--disk d: bps_burst needs bps",
                         "give bps=N too"),
    "disk-group": ("disk", "d,group=g", "--disk d: group needs a limit to share",
                   "give iops=N or bps=SIZE too"),
    "disk-group-isolate": ("disk", "d,group=g,iops=1,isolate",
                           "--disk d: isolate and group exclude each other",
                           "disks of a group share a worker"),
    "null-size": ("disk", "null:5", "--disk null:5: no size of a disk",
                  "a multiple of 512 is: null:1G"),
    "null-huge": ("disk", "null:8388607T", "--disk null:8388607T: no size of a disk",
                  "a multiple of 512 is: null:1G"),
    "null-text": ("disk", "null:big", "--disk null:big: 'big' is no size", "write 64M or 2G"),
    "foreign-serial": ("disk", "vhost-user=s,serial=a",
                       "--disk vhost-user=s: serial is not possible here",
                       "that is its backend's to say"),
    "net-kind": ("net", "wifi", "'wifi' is no network", "nat, bridge=NAME*"),
    "net-mac": ("net", "nat,mac=5:4", "'5:4' is no MAC address", "write 52:54:00:12:34:56"),
    "share-tag": ("share", "d,tag=a/b", "--share d: tag='a/b' cannot be",
                  "letters, digits, '.', '_' and '-' can"),
    "share-option": ("share", "d,rw", "--share d: unknown option 'rw'", "*"),
    "vsock-cid": ("vsock", "p,cid=2", "--vsock p: cid=2 cannot be", "3 to 4294967294 can"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_spec_that_cannot_be_says_why(case: str) -> None:
    kind, text, what, remedy = BAD[case]
    with pytest.raises(BadInput) as caught:
        PARSERS[kind](text)
    assert caught.value.message == what
    before, star, _ = remedy.partition("*")
    assert caught.value.hint.startswith(before)
    assert star or caught.value.hint == remedy


TOGETHER: dict[str, tuple[dict[str, object], str]] = {
    "many": ({"disks": ["null:1M"] * 49}, "49 devices are too many for a domain"),
    "mac": ({"nets": ["nat,mac=52:54:00:00:00:01", {"kind": "nat", "mac": "52:54:00:00:00:01"}]},
            "MAC address 52:54:00:00:00:01 is taken by another device of this domain"),
    "tag": ({"shares": ["a/src", "b/src"]}, "tag src is taken by another device of this domain"),
    "serial": ({"disks": ["null:1M,serial=a", "null:2M,serial=a"]},
               "serial a is taken by another device of this domain"),
    "group": ({"disks": ["null:1M,group=g,iops=1", "null:2M,group=g,iops=2"]},
              "the limits of the group g differ from those at --disk null:1M"),
}  # fmt: skip


@pytest.mark.parametrize("case", TOGETHER)
def test_devices_that_cannot_be_together_are_refused(case: str) -> None:
    options, what = TOGETHER[case]
    with pytest.raises(BadInput) as caught:
        make(options)
    assert caught.value.message.endswith(what)
    assert caught.value.hint


def test_text_and_table_mean_the_same() -> None:
    text = devices.disk("d.img,readonly,iops=5,bps=1M,serial=x,discard=off")
    table = {"path": "d.img", "readonly": True, "iops": 5, "bps": "1M", "serial": "x"}
    assert devices.disk({**table, "discard": False}) == text
    assert devices.net({"bridge": "br0", "queues": 2}) == devices.net("bridge=br0,queues=2")
    forwards = {"kind": "nat", "forward": ["tcp:80:80", "udp:5:5"], "antispoof": True}
    assert devices.net(forwards) == devices.net(
        "nat,forward=tcp:80:80,forward=udp:5:5,antispoof=on"
    )


@pytest.mark.parametrize("table", [{}, {"readonly": True}, {"path": "a", "id": "b"}, {"path": ""}])
def test_table_names_one_subject(table: dict[str, object]) -> None:
    with pytest.raises(BadInput, match="names"):
        devices.disk(table)


def test_comma_of_a_path_is_written_twice() -> None:
    assert devices.disk("a,,b.img,readonly").text == "a,b.img"
    assert specs.split("a,,,b") == ["a,", "b"]
    assert specs.split("") == [""]


def test_disks_come_first_and_in_their_order() -> None:
    config = make({"nets": ["nat"], "disks": ["null:1M", "null:2M"], "root": "r", "vsock": "v"})
    assert [device.kind for device in config.devices] == ["blk", "blk", "net", "fs", "vsock", "rng"]
    assert [device.text for device in config.devices[:2]] == ["1M", "2M"]


def test_randomness_comes_with_other_devices_unless_it_is_off() -> None:
    assert make({}).devices == []
    assert [device.kind for device in make({"rng": "rate=1M"}).devices] == ["rng"]
    assert [device.kind for device in make({"disks": ["null:1M"]}).devices] == ["blk", "rng"]
    assert [one.kind for one in make({"disks": ["null:1M"], "rng": "off"}).devices] == ["blk"]
    assert len(make({"disks": ["null:1M"] * 48}).devices) == 48


def test_tag_comes_from_the_folders_name() -> None:
    assert devices.share("/a/my src/").options["tag"] == "my-src"
    assert devices.share("/").options["tag"] == "share"
    assert devices.share("/a,tag=b").options["tag"] == "b"


@pytest.mark.parametrize(
    ("text", "path"),
    [("disk", "/dev/vda"), ("vda1", "/dev/vda1"), ("/dev/vdb", "/dev/vdb"), ("./disk", ""),
     ("/srv/guest", ""), ("vd/a", ""), ("/dev/vd", ""), ("", "")],
)  # fmt: skip
def test_root_is_a_disk_or_a_folder(text: str, path: str) -> None:
    assert devices.root_disk(text) == path
    assert (devices.root(text) is not None) == bool(text and not path)


@given(st.sampled_from(sorted(PARSERS)), st.text(max_size=20))
def test_any_text_is_at_worst_bad_input(kind: str, text: str) -> None:
    try:
        PARSERS[kind](text)
    except BadInput:
        pass


@given(
    st.dictionaries(
        st.sampled_from(["path", "id", "null", "iops", "cache", "mac", "kind"]),
        st.none() | st.integers() | st.text(max_size=5) | st.booleans(),
        max_size=4,
    )
)
def test_any_table_is_at_worst_bad_input(table: dict[str, object]) -> None:
    for parse in (devices.disk, devices.net, devices.share):
        try:
            parse(table)
        except BadInput:
            pass
