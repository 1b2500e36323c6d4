"""A hostile guest's storms, MSRs and jumps: the VMM stays small, silent, and in command."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kvm import refguest
from tests.kvm.junk import FAULT_GP, GUESTS_OWN, WORD, few_runs, touch_msrs
from tests.kvm.refguest import Guest

if TYPE_CHECKING:
    from tests.kvm.junk import Msr


@pytest.fixture(autouse=True)
def crash_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


MSRS: Final = (
    *(0x10, 0x1B, 0x3A, 0x8B, 0x174, 0x1A0, 0x1D9, 0x277, 0x2FF, 0x6E0, 0xC8F, 0xDA0),
    *(0x4B564D00, 0x4B564D02, 0x4B564D03, 0x4B564D04, 0x4B505600, 0x40000000, 0x40000020),
    *(0xC0000080, 0xC0000081, 0xC0000082, 0xC0000100, 0xC0000102, 0xC0000103, 0xC0010117),
)


MSR = st.tuples(st.sampled_from(MSRS) | st.integers(0, 0xFFFFFFFF), st.integers(0, 1), WORD)


@few_runs
@given(msrs=st.lists(MSR, min_size=1, max_size=40))
def test_msr_junk_is_a_fault_in_the_guest(tmp_path: Path, msrs: list[Msr]) -> None:
    end, results = touch_msrs(tmp_path, msrs)
    # Some of these give KVM a guest's page to write to, and that may be the guest's own code.
    assert end.kind in GUESTS_OWN
    if end.kind == "poweroff":
        assert set(results) <= {0, FAULT_GP}


def test_unknown_msrs_fault_each_time(tmp_path: Path) -> None:
    msrs = [(0x12345678, write, 1) for write in (0, 1)] * 200
    end, results = touch_msrs(tmp_path, msrs)
    assert end.kind == "poweroff"
    assert results == [FAULT_GP] * len(msrs)


@pytest.mark.parametrize(
    ("to", "idt", "kind"),
    [
        ("0x40000000", 1, "poweroff"),  # not mapped: its handler knows what to do
        ("0x800000000000", 1, "poweroff"),  # no address at all
        ("0x40000000", 0, "triple-fault"),
        ("0xd0000000", 1, "stuck"),  # mapped, and nothing is there: KVM has no instruction
    ],
)
def test_jump_into_nowhere_ends_in_the_guest(to: str, idt: int, kind: str) -> None:
    end, guest = refguest.run(f"jump to={to} idt={idt}")
    assert end.kind == kind
    assert "jump to" in guest.text


def own_memory(pid: int) -> int:
    """Return the process's anonymous memory in KiB; the guest's is a file's."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
    assert found
    return int(found[1])


def test_storms_cost_the_vmm_neither_memory_nor_log() -> None:
    with Guest("flood,sendstorm,bindstorm,channels,channels,halt n=1000 size=65536") as guest:
        guest.expect_exec(len("halting"))
        domain = guest.domain
        assert own_memory(domain.pid) < 32 << 10
        assert Path(domain._directory.path, "log").stat().st_size == 0
        assert domain.status()["state"] == "running"
        stats = domain.stats()
        assert stats["hypercall_log"] >= 1000
        assert stats["hypercall_evtchn_send"] >= 1000
        assert stats["hypercall_evtchn_bind"] >= 1000
        assert domain.kill().kind == "killed"


def test_vcpu_up_and_down_many_times_leaves_no_thread() -> None:
    with Guest("upstorm,halt n=100", vcpus=2) as guest:
        guest.expect("halting")
        assert own_memory(guest.domain.pid) < 32 << 10
        assert len(list(Path(f"/proc/{guest.domain.pid}/task").iterdir())) < 10
    assert "upstorm 100 failed 0" in guest.text


def test_reboots_without_end_leave_nothing_behind() -> None:
    def descriptors(pid: int) -> int:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))

    with Guest("again") as guest:
        boots = 0
        deadline = time.monotonic() + refguest.PATIENCE
        while boots < 10 and time.monotonic() < deadline:
            boots = int(guest.domain.status()["boots"])
        assert boots >= 10
        assert descriptors(guest.domain.pid) < 40
        assert own_memory(guest.domain.pid) < 32 << 10
        assert guest.domain.kill().kind == "killed"


@pytest.mark.parametrize("vcpus", [2, 8])
def test_vcpus_may_undo_what_others_do(vcpus: int) -> None:
    with Guest("race,vcpus", vcpus=vcpus) as guest:
        guest.domain.exec_port.sendall(b"x" * 4096)
        end = guest.end()
    assert guest.failures == []
    assert end.kind == "poweroff"


def test_flood_that_nobody_reads_does_not_stop_the_guest() -> None:
    with Guest("flood n=300 size=65536", stats=True) as guest:
        end = guest.domain.wait(timeout=refguest.PATIENCE)
    assert end is not None
    assert end.kind == "poweroff"
    assert end.stats["log_bytes_dropped"] > 200 * 65536


def test_crash_report_of_a_flood_is_short() -> None:
    end, _ = refguest.run("flood,crash n=50 size=65536 reason=enough")
    assert (end.kind, end.message) == ("crash", "enough")
    assert Path(end.report).stat().st_size < 200_000
