"""What /dev/kvm itself answers, and what is said when it cannot be had."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from kvmpv.errors import HostError, KvmError
from kvmpv.kvm import System, cpuid, uapi

if TYPE_CHECKING:
    from pathlib import Path


def test_open_checks_the_interfaces_version(system: System) -> None:
    assert system.api_version == 12
    assert system.run_page_size >= 3 * 4096
    assert system.check_extension(uapi.KVM_CAP_USER_MEMORY) == 1
    assert system.check_extension(0x7FFF) == 0


def test_supported_cpuid_has_the_vendor_and_kvms_signature(system: System) -> None:
    entries = system.supported_cpuid()
    vendor = cpuid.find(entries, 0)
    kvm = cpuid.find(entries, 0x40000000)
    assert vendor is not None
    assert vendor.eax >= 1
    assert kvm is not None
    signature = b"".join(r.to_bytes(4, "little") for r in (kvm.ebx, kvm.ecx, kvm.edx))
    assert signature == b"KVMKVMKVM\0\0\0"


def test_msr_lists_name_the_time_stamp_counter(system: System) -> None:
    assert 0x10 in system.msr_indices()
    assert len(set(system.feature_msrs())) == len(system.feature_msrs())


def test_capabilities_are_by_the_kernels_names(system: System) -> None:
    found = system.capabilities()
    assert found["KVM_CAP_USER_MEMORY"] == 1
    assert len(found) > 60


def test_missing_device_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="No such file") as caught:
        System.open(str(tmp_path / "kvm"))
    assert "modprobe" in caught.value.hint


def test_no_permission_says_how_to_get_it(tmp_path: Path) -> None:
    path = tmp_path / "kvm"
    path.touch(mode=0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(HostError, match="Permission denied") as caught:
            System.open(str(path))
    finally:
        os.seteuid(user)
    assert "group" in caught.value.hint


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero"])
def test_another_device_is_no_kvm(path: str) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(HostError, match="not a KVM device"):
        System.open(path)
    assert set(os.listdir("/proc/self/fd")) == before


def test_use_after_close_is_an_error_and_not_anothers_descriptor() -> None:
    opened = System.open()
    vm = opened.create_vm()
    vm.close()
    vm.close()
    opened.close()
    for use in (lambda: opened.check_extension(0), opened.create_vm, vm.get_clock, vm.stats):
        with pytest.raises(KvmError) as caught:
            use()
        assert caught.value.errno == 9
