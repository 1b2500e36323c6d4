"""Memory slots, read-only ones, and the dirty log."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kvmpv.errors import BadInput, KvmError
from kvmpv.kvm import uapi
from tests.kvm.guest import DATA, MEMORY, MMIO, Guest

if TYPE_CHECKING:
    from collections.abc import Callable

PAGES = MEMORY // 4096
WRITE = "a30000100000000000  e610  a30000100000000000 e610"  # mov [DATA], eax; out; twice


def dirty(one: Guest) -> set[int]:
    bits = int.from_bytes(one.vm.dirty_log(0, PAGES), "little")
    return {page for page in range(PAGES) if bits >> page & 1}


def test_the_dirty_log_names_written_pages_once(guest: Callable[..., Guest]) -> None:
    one = guest(WRITE)
    one.vm.set_memory_slot(0, 0, MEMORY, one.address, uapi.KVM_MEM_LOG_DIRTY_PAGES)
    assert dirty(one) == set()
    one.port()
    assert DATA // 4096 in dirty(one)
    assert DATA // 4096 not in dirty(one)
    one.port()
    assert DATA // 4096 in dirty(one)


def test_with_manual_protection_pages_stay_dirty_until_cleared(
    guest: Callable[..., Guest],
) -> None:
    one = guest(WRITE)
    one.vm.enable_cap(
        uapi.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, uapi.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE
    )
    one.vm.set_memory_slot(0, 0, MEMORY, one.address, uapi.KVM_MEM_LOG_DIRTY_PAGES)
    one.port()
    assert DATA // 4096 in dirty(one)
    assert DATA // 4096 in dirty(one)
    one.vm.clear_dirty_log(0, 256, 64, b"\1")  # DATA is page 256
    assert DATA // 4096 not in dirty(one)
    one.port()
    assert DATA // 4096 in dirty(one)


def test_a_bitmap_of_the_wrong_size_is_refused_before_the_kernel_writes(
    guest: Callable[..., Guest],
) -> None:
    one = guest("f4")
    with pytest.raises(BadInput, match="512 pages, not 64"):
        one.vm.dirty_log(0, 64)


def test_a_read_only_slot_shows_writes_as_mmio(guest: Callable[..., Guest]) -> None:
    # mov eax, [MMIO]; out 0x10, eax; mov [MMIO], eax
    one = guest("a10000300000000000  e710  a30000300000000000")
    one.load(DATA, b"\x99\0\0\0")
    one.vm.set_memory_slot(1, MMIO, 4096, one.address + DATA, uapi.KVM_MEM_READONLY)
    assert one.port() == (0x10, 0x99)
    assert one.exit_reason() == uapi.KVM_EXIT_MMIO
    assert one.vcpu.page8[uapi.RUN_MMIO_IS_WRITE8] == 1


def test_a_deleted_slot_is_memory_no_more(guest: Callable[..., Guest]) -> None:
    one = guest("a10000300000000000  e710  a10000300000000000")
    one.load(DATA, b"\x77\0\0\0")
    one.vm.set_memory_slot(1, MMIO, 4096, one.address + DATA)
    assert one.port() == (0x10, 0x77)
    one.vm.set_memory_slot(1, MMIO, 0, 0)
    assert one.exit_reason() == uapi.KVM_EXIT_MMIO


def test_slots_may_not_overlap(guest: Callable[..., Guest]) -> None:
    one = guest("f4")
    with pytest.raises(KvmError, match=r"memory slot 1 at 0x1000, 0x1000 bytes") as caught:
        one.vm.set_memory_slot(1, 0x1000, 0x1000, one.address)
    assert caught.value.errno == 17
