"""The kernel's binary statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.kvm.guest import Guest

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpv.kvm import System


def test_exits_are_counted(guest: Callable[..., Guest]) -> None:
    one = guest("e610 e610 e610 f4")
    before = one.vcpu.stats()["exits"]
    for _ in range(3):
        one.port()
    assert one.vcpu.stats()["exits"] >= before + 3


def test_descriptors_name_units_and_kinds(guest: Callable[..., Guest]) -> None:
    one = guest("f4")
    with one.vcpu.open_stats() as stats:
        found = {d.name: d for d in stats.descriptors}
        values = stats.values()
    assert found["exits"].kind == "cumulative"
    wait = found["halt_wait_ns"]
    assert (wait.unit, wait.base, wait.exponent) == ("seconds", 10, -9)
    histogram = found["halt_poll_success_hist"]
    assert histogram.kind == "log histogram"
    assert len(values["halt_poll_success_hist"]) == histogram.count > 1
    assert "halt_poll_success_hist" not in one.vcpu.stats()
    assert set(values) == set(found)
    assert stats.id.startswith("kvm-")


def test_the_machines_are_its_own(guest: Callable[..., Guest]) -> None:
    machine = guest("f4").vm.stats()
    assert "remote_tlb_flush" in machine
    assert "exits" not in machine


def test_page_faults_or_cache_misses_grow_as_memory_is_touched(system: System) -> None:
    # mov eax, [DATA]; out 0x10, al
    with Guest(system, bytes.fromhex("a10000100000000000 e610")) as one:
        one.port()
        assert one.vcpu.stats()["pf_taken"] + one.vm.stats()["mmu_cache_miss"] > 0
