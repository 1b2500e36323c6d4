"""The reference guest checks every call and every event path from inside."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmpv.abi import address_map
from tests.kvm import refguest
from tests.kvm.command import IN_BOX, once

NMIS = 5 if IN_BOX else 100


@pytest.mark.parametrize("vcpus", [1, 2, 4, 16])
def test_all_checks_pass(vcpus: int) -> None:
    end, guest = refguest.run("all", vcpus=vcpus)
    assert guest.failures == []
    assert end.kind == "poweroff"
    assert end.status == 0
    assert f"vcpus {vcpus - 1} up and down twice" in guest.text
    assert "0 not ok" in guest.text


def test_all_checks_pass_with_the_local_apic_in_memory() -> None:
    end, guest = refguest.run("all apic=mmio", vcpus=2)
    assert guest.failures == []
    assert end.kind == "poweroff"
    assert "send-arrives" in guest.passed


@once
def test_all_the_vcpus_that_there_may_be_work_at_once() -> None:
    end, guest = refguest.run("race n=10", vcpus=address_map.MAX_VCPUS)
    assert guest.failures == []
    assert guest.text.count("ok race-up") == address_map.MAX_VCPUS - 1
    assert end.kind == "poweroff"


@pytest.mark.parametrize("apic", ["x2apic", "mmio"])
@pytest.mark.parametrize("vcpus", [1, 2])
def test_calls_from_nmi_context_disturb_none_that_they_interrupt(vcpus: int, apic: str) -> None:
    end, guest = refguest.run(f"nmi n={NMIS} apic={apic}", vcpus=vcpus)
    assert guest.failures == []
    assert {"nmi-taken", "nmi-wrong"} <= guest.passed
    assert end.kind == "poweroff"


def test_more_vcpus_can_be_than_are_brought_up_at_boot() -> None:
    _, guest = refguest.run("startinfo,vcpus", vcpus=2, max_vcpus=5)
    assert guest.failures == []
    assert "start vcpus=2/5" in guest.text


def test_start_info_tells_memory_and_initrd(tmp_path: Path) -> None:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(b"x" * 5000)
    _, guest = refguest.run("startinfo", memory="64M", initrd=initrd)
    assert guest.failures == []
    assert f"ram={(64 << 20) - (0x100000 - 0x9E000)} ranges=3" in guest.text
    assert "initrd=5000" in guest.text


def test_user_mode_never_gets_through_the_gate() -> None:
    end, guest = refguest.run("usermode")
    assert guest.failures == []
    assert {"cpl3", "cpl3-unknown", "cpl3-poweroff"} <= guest.passed
    assert end.kind == "poweroff"


def test_guest_ends_at_its_first_instruction() -> None:
    end, guest = refguest.run("", kernel="first", stats=True)
    assert end.kind == "poweroff"
    assert guest.output == b""
    assert end.stats["exits_to_user_space"] == 1


def test_calls_are_counted_by_kind() -> None:
    end, _ = refguest.run("bench n=100", stats=True)
    assert end.stats["hypercall_version"] == 100
    assert end.stats["hypercall_poweroff"] == 1
    assert end.stats["exits_to_user_space"] == 103


def test_smallest_memory_is_enough_for_the_smallest_guest() -> None:
    end, _ = refguest.run("", kernel="first", memory=address_map.MEMORY_MIN)
    assert end.kind == "poweroff"
