"""Nothing stays behind: descriptors, mappings, threads."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvmpv.errors import KvmError
from kvmpv.kvm import System
from tests.kvm.guest import Guest

if TYPE_CHECKING:
    from collections.abc import Callable


def held() -> tuple[int, int, int]:
    maps = Path("/proc/self/maps").read_text().splitlines()
    ours = [line for line in maps if "kvm" in line.rsplit("/", 1)[-1] and ".so" not in line]
    return len(os.listdir("/proc/self/fd")), len(ours), threading.active_count()


def whole_life(system: System) -> None:
    with Guest(system, bytes.fromhex("e610 f4"), "split") as one:
        one.port()
        one.vcpu.stats()
        one.vm.stats()


def refused(system: System) -> None:
    with Guest(system, b"\xf4") as one, pytest.raises(KvmError):
        one.vm.create_vcpu(0)  # there is one already


def opened_and_closed(_: System) -> None:
    with System.open() as system, system.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        assert vcpu.fd >= 0
    assert (system.fd, vm.fd, vcpu.fd) == (-1, -1, -1)
    vcpu.close()


@pytest.mark.parametrize("use", [whole_life, refused, opened_and_closed])
def test_nothing_is_left_behind(system: System, use: Callable[[System], None]) -> None:
    use(system)
    before = held()
    for _ in range(3):
        use(system)
    assert held() == before


def test_a_view_kept_by_a_caller_does_not_outlive_the_run_page(system: System) -> None:
    with Guest(system, b"\xf4") as one:
        kept = one.vcpu.page64
    with pytest.raises(ValueError, match="released"):
        kept[0]
