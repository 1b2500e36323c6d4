"""How patched guests start and end."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

import kvmpv
from kvmpv.toolstack import defaults
from tests.waiting import until


@pytest.mark.parametrize("vcpus", [1, 4, 16])
def test_as_many_vcpus_as_asked_for(vcpus: int) -> None:
    with kvmpv.Domain(vcpus=vcpus) as domain:
        assert str(domain.exec("nproc")).strip() == str(vcpus)


def test_64_mib_of_memory_are_enough() -> None:
    with kvmpv.Domain(memory=64 << 20) as domain:
        assert domain.exec("true").status == 0


def test_bzimage_boots_too() -> None:
    image = os.path.join(os.path.dirname(os.path.realpath(defaults.kernel())), "bzImage")
    with kvmpv.Domain(kernel=image, initrd=defaults.initrd()) as domain:
        assert str(domain.exec("cat /sys/hypervisor/type")).strip() == "kvmpv"


def test_guest_powers_itself_off() -> None:
    with kvmpv.Domain() as domain:
        with suppress(kvmpv.KvmpvError):  # it may be gone before the command's status is out
            domain.exec("poweroff")
        end = domain.wait(timeout=30)
        assert end is not None
        assert (end.kind, end.status) == ("poweroff", 0)


def test_requested_reboot_boots_again_in_place_and_requested_poweroff_ends() -> None:
    with kvmpv.Domain(stats=True) as domain:
        domain.exec("touch /tmp/before")
        domain.request_reboot()
        until(lambda: domain.status()["boots"] == "2", 60, 0.2)
        assert domain.exec("test -e /tmp/before").status == 1
        end = domain.poweroff(timeout=30)
        assert (end.kind, end.status, end.stats["boots"]) == ("poweroff", 0, 2)


def test_panic_ends_with_its_own_status_and_a_report() -> None:
    with kvmpv.Domain() as domain:
        with pytest.raises(kvmpv.GuestCrash) as crash:
            domain.exec("echo c > /proc/sysrq-trigger; sleep 60")
        end = domain.wait_for_end()
    assert crash.value.exit_status == end.status == 125
    assert "sysrq triggered crash" in end.message
    report = Path(end.report).read_text()
    for wanted in ("rip=", "code:", "last console lines:", "Kernel panic - not syncing"):
        assert wanted in report
