"""CPUID: what --cpu hides and shows, and a topology that holds together for any number of vCPUs."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvmpv import abi
from kvmpv.errors import BadInput
from kvmpv.kvm import CpuidEntry, cpuid
from kvmpv.machine.cpu_model import FEATURES, NEEDED, CpuModel, for_vcpu, guest_entries

BY_INDEX = 1


def host() -> list[CpuidEntry]:
    """Return the table of a host with hyper-threads, two cores and most features."""
    every = 0xFFFFFFFF
    return [
        CpuidEntry(0, 0, 0, 0x1F),
        CpuidEntry(1, 0, 0, 0, 0x09100800, every & ~(1 << 24 | 1 << 31), every),
        CpuidEntry(4, 0, BY_INDEX, 1 << 5 | 1 | 1 << 14 | 3 << 26),
        CpuidEntry(4, 1, BY_INDEX, 3 << 5 | 3 | 15 << 14 | 3 << 26),
        CpuidEntry(4, 2, BY_INDEX, 0),
        CpuidEntry(6, 0, 0, 0),
        CpuidEntry(7, 0, BY_INDEX, 0, every, every, every),
        CpuidEntry(0xB, 0, BY_INDEX, 1, 2, 0x100, 9),
        CpuidEntry(0xB, 1, BY_INDEX, 4, 4, 0x201, 9),
        CpuidEntry(0xD, 1, BY_INDEX, every),
        CpuidEntry(0x1F, 0, BY_INDEX, 1, 2, 0x100, 9),
        CpuidEntry(0x40000000, 0, 0, 0x40000001),
        CpuidEntry(0x40000001, 0, 0, every),
        CpuidEntry(0x80000000, 0, 0, 0x8000001E),
        CpuidEntry(0x80000001, 0, 0, 0, 0, every, every),
        CpuidEntry(0x80000007, 0, 0, 0, 0, 0, every),
        CpuidEntry(0x80000008, 0, 0, 0x3030, every, 0x4003),
        CpuidEntry(0x8000001D, 3, BY_INDEX, 3 << 5 | 3 | 3 << 14),
        CpuidEntry(0x8000001E, 0, 0, 9, 0x109, 0x100),
    ]


def made(text: str = "host", count: int = 1) -> list[CpuidEntry]:
    return guest_entries(host(), CpuModel(text), count, abi.FEATURES)


def has(entries: list[CpuidEntry], name: str) -> bool:
    function, index, register, mask = FEATURES[name]
    entry = cpuid.find(entries, function, index)
    return entry is not None and bool(getattr(entry, register) & mask)


def field(entries: list[CpuidEntry], function: int, register: str, index: int = 0) -> int:
    entry = cpuid.find(entries, function, index)
    assert entry is not None
    value = getattr(entry, register)
    assert isinstance(value, int)
    return value


# ---- --cpu


@pytest.mark.parametrize("name", sorted(set(FEATURES) - NEEDED))
def test_feature_is_hidden_and_shown(name: str) -> None:
    assert not has(made(f"host,-{name}"), name)
    assert has(made(f"host,+{name}"), name)


@pytest.mark.parametrize("name", ["hypervisor", "tsc_deadline_timer", "x2apic", "arat"])
def test_what_a_guest_without_a_pit_needs_is_there(name: str) -> None:
    assert has(made(), name)


def test_changes_add_up() -> None:
    entries = made("host,-smap,-avx2,+svm")
    assert [has(entries, name) for name in ("smap", "avx2", "svm", "smep")] == [
        False, False, True, True,
    ]  # fmt: skip


def test_host_table_stays_as_it_is() -> None:
    supported = host()
    guest_entries(supported, CpuModel("host,-smap"), 4, abi.FEATURES)
    assert supported == host()


@pytest.mark.parametrize(
    "text",
    ["", "epyc", "Host", "host,", "host,smap", "host,-", "host,-nope", "host,+-smap", "-smap"],
)
def test_unknown_model_is_refused(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        CpuModel(text)
    assert caught.value.hint


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_needed_feature_cannot_be_hidden(name: str) -> None:
    with pytest.raises(BadInput, match="cannot be hidden"):
        CpuModel(f"host,-{name}")


@given(st.text(max_size=30) | st.text(max_size=10).map("host,-{}".format))
def test_any_model_is_at_worst_bad_input(text: str) -> None:
    try:
        CpuModel(text)
    except BadInput:
        pass


# ---- discovery


def test_our_leaves_are_the_abis() -> None:
    entries = made()
    base = cpuid.find(entries, abi.CPUID_BASE)
    assert base is not None
    words = (base.ebx, base.ecx, base.edx)
    assert b"".join(word.to_bytes(4, "little") for word in words) == abi.SIGNATURE
    assert base.eax == abi.CPUID_LAST
    assert field(entries, abi.CPUID_FEATURES, "eax") == abi.VERSION
    assert field(entries, abi.CPUID_FEATURES, "ebx") == abi.FEATURES
    gate = field(entries, abi.CPUID_FEATURES, "edx")
    assert (gate & 0xFFFF, gate >> 16) == (abi.GATE_PORT, abi.GATE_PORT_NUMBER)


def test_kvm_stays_the_first_hypervisor() -> None:
    assert field(made(), 0x40000000, "eax") == 0x40000001


# ---- topology


@given(st.integers(1, 254))
@example(1)
@example(2)
@example(3)
@example(128)
@example(254)
def test_topology_is_one_package_of_single_threaded_cores(count: int) -> None:
    entries = made(count=count)
    shift = field(entries, 0xB, "eax", 1)
    assert count <= 1 << shift < 2 * count
    assert field(entries, 0xB, "eax", 0) == 0  # one thread a core
    assert field(entries, 0xB, "ebx", 0) == 1
    assert field(entries, 0xB, "ebx", 1) == count
    assert [field(entries, 0xB, "ecx", index) for index in range(3)] == [0x100, 0x201, 2]
    assert field(entries, 1, "ebx") >> 16 & 0xFF == count
    assert bool(field(entries, 1, "edx") & 1 << 28) == (count > 1)
    assert field(entries, 4, "eax", 0) >> 14 & 0xFFF == 0  # the first level is a core's own
    assert field(entries, 4, "eax", 1) >> 14 & 0xFFF == count - 1  # the last is everyone's
    assert field(entries, 4, "eax", 1) >> 26 == min(count - 1, 63)
    size = field(entries, 0x80000008, "ecx")
    assert (size & 0xFF, size >> 12 & 0xF) == (count - 1, shift)
    assert not [entry for entry in entries if entry.function == 0x1F]


@given(st.integers(1, 254), st.data())
def test_each_vcpu_has_its_own_apic_id_everywhere(count: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, count - 1))
    entries = for_vcpu(made(count=count), index)
    assert field(entries, 1, "ebx") >> 24 == index
    assert [field(entries, 0xB, "edx", level) for level in range(3)] == [index] * 3
    assert field(entries, 0x8000001E, "eax") == index
    assert field(entries, 0x8000001E, "ebx") & 0xFF == index
    assert field(entries, 0x8000001E, "ebx") >> 8 == 0
    assert field(entries, 0x8000001E, "ecx") == 0


def test_leaves_that_guests_need_are_within_the_largest() -> None:
    old = [CpuidEntry(0, 0, 0, 4), *(entry for entry in host() if 0 < entry.function < 5)]
    entries = guest_entries(old, CpuModel("host"), 4, abi.FEATURES)
    assert field(entries, 0, "eax") >= 0xB
