"""What a guest's CPUID says: the host's features, less what is hidden, plus ours.

Sources: Linux's arch/x86/kvm/cpuid.c for what KVM offers, Intel SDM volume 2 (CPUID) and AMD APM
volume 3, appendix E, for the topology leaves.
"""

from __future__ import annotations

from kvmpv import abi
from kvmpv.abi import address_map
from kvmpv.errors import BadInput
from kvmpv.kvm import CpuidEntry, cpuid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    Bit = tuple[int, int, str, int]

BY_INDEX: Final = 1  # KVM_CPUID_FLAG_SIGNIFCANT_INDEX


def _bits(function: int, index: int, register: str, names: str) -> dict[str, Bit]:
    pairs = (item.split(":") for item in names.split())
    return {name: (function, index, register, 1 << int(bit)) for name, bit in pairs}


# The names are those of /proc/cpuinfo.
FEATURES: Final[dict[str, Bit]] = {
    **_bits(
        1, 0, "ecx",
        "pni:0 pclmulqdq:1 ssse3:9 fma:12 cx16:13 pcid:17 sse4_1:19 sse4_2:20 x2apic:21 movbe:22"
        " popcnt:23 tsc_deadline_timer:24 aes:25 xsave:26 avx:28 f16c:29 rdrand:30 hypervisor:31",
    ),
    **_bits(
        1, 0, "edx",
        "vme:1 de:2 pse:3 tsc:4 mce:7 mtrr:12 pge:13 mca:14 cmov:15 pat:16 pse36:17 clflush:19"
        " mmx:23 fxsr:24 sse:25 sse2:26",
    ),
    **_bits(6, 0, "eax", "arat:2"),
    **_bits(
        7, 0, "ebx",
        "fsgsbase:0 tsc_adjust:1 bmi1:3 hle:4 avx2:5 smep:7 bmi2:8 erms:9 invpcid:10 rtm:11"
        " avx512f:16 avx512dq:17 rdseed:18 adx:19 smap:20 clflushopt:23 clwb:24 avx512cd:28"
        " sha_ni:29 avx512bw:30 avx512vl:31",
    ),
    **_bits(
        7, 0, "ecx",
        "avx512vbmi:1 umip:2 pku:3 waitpkg:5 gfni:8 vaes:9 vpclmulqdq:10 la57:16 rdpid:22",
    ),
    **_bits(
        7, 0, "edx", "fsrm:4 md_clear:10 serialize:14 ibt:20 spec_ctrl:26 arch_capabilities:29"
    ),
    **_bits(0xD, 1, "eax", "xsaveopt:0 xsavec:1 xgetbv1:2 xsaves:3"),
    **_bits(
        0x80000001, 0, "ecx",
        "lahf_lm:0 svm:2 abm:5 sse4a:6 misalignsse:7 topoext:22 perfctr_core:23",
    ),
    **_bits(0x80000001, 0, "edx", "syscall:11 nx:20 mmxext:22 pdpe1gb:26 rdtscp:27 lm:29"),
    **_bits(0x80000007, 0, "edx", "constant_tsc:8"),
    **_bits(0x80000008, 0, "ebx", "clzero:0 xsaveerptr:2 wbnoinvd:9 ibpb:12"),
    **_bits(
        0x40000001, 0, "eax",
        "kvmclock:3 kvm_asyncpf:4 kvm_steal_time:5 kvm_pv_eoi:6 kvm_pv_unhalt:7 kvm_pv_tlb_flush:9"
        " kvm_asyncpf_vmexit:10 kvm_pv_ipi:11 kvm_poll_control:12",
    ),
}  # fmt: skip

# Without these a 64-bit guest does not start.
NEEDED: Final = frozenset(("tsc", "lm", "cmov", "fxsr", "sse", "sse2"))


class CpuModel:
    """A parsed ``--cpu``: ``host``, then ``,-NAME`` hides a feature and ``,+NAME`` shows one."""

    __slots__ = ("hide", "show")

    def __init__(self, text: str) -> None:
        base, *changes = text.split(",")
        if base != "host":
            raise BadInput(f"unknown CPU model {base!r}", hint="there is 'host'")
        self.hide: list[Bit] = []
        self.show: list[Bit] = []
        for change in changes:
            sign, name = change[:1], change[1:]
            if sign not in ("+", "-") or name not in FEATURES:
                raise BadInput(
                    f"unknown CPU feature {change!r}",
                    hint="write +NAME or -NAME, with a name from /proc/cpuinfo",
                )
            if sign == "-" and name in NEEDED:
                raise BadInput(f"the CPU feature {name!r} cannot be hidden", hint="guests need it")
            (self.hide if sign == "-" else self.show).append(FEATURES[name])


def guest_entries(
    supported: list[CpuidEntry], model: CpuModel, max_vcpus: int, features: int
) -> list[CpuidEntry]:
    """Return the entries that all vCPUs of a guest share; see ``for_vcpu`` for the rest.

    ``features`` are the ABI's feature bits on offer.
    """
    entries = [CpuidEntry(*entry.values()) for entry in supported]
    # Never in KVM's list, and a guest without a PIT needs them; see docs/abi/boot.md.
    shown = [FEATURES[name] for name in ("hypervisor", "tsc_deadline_timer", "x2apic", "arat")]
    for function, index, register, mask in shown + model.show:
        cpuid.edit(entries, function, register, index=index, give=mask)
    for function, index, register, mask in model.hide:
        cpuid.edit(entries, function, register, index=index, take=mask)
    _set_topology(entries, max_vcpus)
    cpuid.put(
        entries,
        CpuidEntry(
            abi.CPUID_BASE, 0, 0,
            abi.CPUID_LAST, abi.SIGNATURE_EBX, abi.SIGNATURE_ECX, abi.SIGNATURE_EDX,
        ),
    )  # fmt: skip
    gate = abi.GATE_PORT | abi.GATE_PORT_NUMBER << 16
    cpuid.put(entries, CpuidEntry(abi.CPUID_FEATURES, 0, 0, abi.VERSION, features, 0, gate))
    start, size = address_map.START_INFO, abi.START_INFO.size
    cpuid.put(entries, CpuidEntry(abi.CPUID_START, 0, 0, start & 0xFFFFFFFF, start >> 32, size, 0))
    return entries


def for_vcpu(entries: list[CpuidEntry], apic_id: int) -> list[CpuidEntry]:
    """Return the entries with one vCPU's APIC id in them."""
    own = [CpuidEntry(*entry.values()) for entry in entries]
    for entry in own:
        if entry.function == 1:
            entry.ebx = entry.ebx & 0x00FFFFFF | apic_id << 24
        elif entry.function in (0xB, 0x1F):
            entry.edx = apic_id
        elif entry.function == 0x8000001E:
            entry.eax = apic_id
            entry.ebx = apic_id
            entry.ecx = 0
    return own


def _set_topology(entries: list[CpuidEntry], count: int) -> None:
    """Make one package of ``count`` cores without hyper-threads, whatever the host is."""
    shift = (count - 1).bit_length()
    entries[:] = [entry for entry in entries if entry.function not in (0xB, 0x1F)]
    entries.append(CpuidEntry(0xB, 0, BY_INDEX, 0, 1, 0x100, 0))
    entries.append(CpuidEntry(0xB, 1, BY_INDEX, shift, count, 0x201, 0))
    entries.append(CpuidEntry(0xB, 2, BY_INDEX, 0, 0, 2, 0))
    hyper_threading = 1 << 28
    for entry in entries:
        if entry.function == 0:
            entry.eax = max(entry.eax, 0xB)  # a leaf beyond it is not there for guests
        elif entry.function == 1:
            entry.ebx = entry.ebx & 0xFF00FFFF | min(count, 255) << 16
            entry.edx = entry.edx & ~hyper_threading | (hyper_threading if count > 1 else 0)
        elif entry.function == 4 and entry.eax & 0x1F:
            sharing = count - 1 if entry.eax >> 5 & 7 == 3 else 0
            entry.eax = entry.eax & 0x3FFF | sharing << 14 | min(count - 1, 63) << 26
        elif entry.function == 0x80000008:
            entry.ecx = entry.ecx & ~0xF0FF | shift << 12 | min(count - 1, 255)
        elif entry.function == 0x8000001D and entry.eax & 0x1F:
            sharing = count - 1 if entry.eax >> 5 & 7 == 3 else 0
            entry.eax = entry.eax & 0x3FFF | sharing << 14
