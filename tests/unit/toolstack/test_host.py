"""kvmpv doctor's findings: what is made of what the probe saw."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmpv.errors import HostError
from kvmpv.toolstack import host, host_devices, processes, servers, vmm
from kvmpv.toolstack.finding import Finding

GOOD = {
    "missing": "",
    "max_vcpus": "1024",
    "guest": "ok",
    "ns_per_instruction": "0.9",
    "exchange": "ok",
    "fpu": "ok",
    "breakpoint": "ok",
}


@pytest.fixture(autouse=True)
def this_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(vmm, "open_kvm", lambda: __import__("os").open("/dev/null", 0))
    monkeypatch.setattr(host, "SHMEM_THP", str(tmp_path / "shmem_enabled"))
    monkeypatch.setattr(servers, "passt", lambda: "/usr/bin/passt")
    (tmp_path / "shmem_enabled").write_text("always within_size [advise] never deny force\n")


def findings(monkeypatch: pytest.MonkeyPatch, **facts: str) -> dict[str, Finding]:
    merged = {key: value for key, value in (GOOD | facts).items() if value != "absent"}
    monkeypatch.setattr(host, "_probe", lambda _: merged)
    return {finding.name: finding for finding in host.findings()}


def test_good_host_runs_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    found = findings(monkeypatch)
    assert host.can_run_linux(list(found.values()))
    assert found["Linux guests"].seen == "0.9 ns an instruction in kernel mode"
    assert all(finding.remedy == "" for finding in found.values() if finding.good)


@pytest.mark.parametrize(
    ("facts", "name", "seen"),
    [
        ({"ns_per_instruction": "512.0"}, "Linux guests", "512.0 ns an instruction"),
        ({"exchange": "KVM_EXIT_INTERNAL_ERROR"}, "Linux guests", "KVM cannot do: exchange"),
        ({"fpu": "stuck", "breakpoint": "stuck"}, "Linux guests", "cannot do: fpu, breakpoint"),
        ({"missing": "irqfd"}, "KVM capabilities", "missing: irqfd"),
        ({"guest": "KVM_EXIT_SHUTDOWN"}, "small guests", "KVM_EXIT_SHUTDOWN"),
        ({"error": "not a KVM device"}, "KVM interface", "not a KVM device"),
        ({"guest": "absent"}, "KVM interface", "the probe died"),
    ],
)
def test_bad_host_does_not_and_says_what_to_do(
    facts: dict[str, str], name: str, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = findings(monkeypatch, **facts)
    assert not host.can_run_linux(list(found.values()))
    assert not found[name].good
    assert seen in found[name].seen
    assert found[name].remedy


def test_probe_that_died_half_way_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    for last in ("missing", "max_vcpus", "ns_per_instruction"):
        found = findings(monkeypatch, **{last: "absent"})
        assert found["KVM interface"].seen == "the probe died"
    found = findings(monkeypatch, fpu="absent")
    assert "fpu" in found["Linux guests"].seen


def test_no_kvm_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise HostError("cannot open /dev/kvm: No such file or directory", hint="load it")

    monkeypatch.setattr(vmm, "open_kvm", refuse)
    found = host.findings()
    assert not host.can_run_linux(found)
    assert (found[0].name, found[0].remedy) == ("/dev/kvm", "load it")


def test_huge_pages_are_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(host.SHMEM_THP)
    path.write_text("always within_size advise [never] deny force\n")
    found = findings(monkeypatch)
    assert not found["huge pages"].good
    assert host.can_run_linux(list(found.values()))  # only slower
    assert host.mend(list(found.values())) == [f"wrote 'advise' to {path}"]
    assert path.read_text() == "advise"


def test_good_host_needs_no_mending(monkeypatch: pytest.MonkeyPatch) -> None:
    found = findings(monkeypatch)
    assert host.mend(list(found.values())) == []


def test_mending_that_is_not_allowed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = Finding("x", False, "", fix=("/proc/version/nowhere", "1"))
    with pytest.raises(HostError, match="cannot write"):
        host.mend([bad])


def test_missing_kernel_is_no_lack_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    found = findings(monkeypatch)
    assert found["patched kernel"].seen == "not built yet"
    assert "scripts/run" in found["patched kernel"].remedy


@pytest.mark.parametrize(
    ("state", "good", "seen"),
    [("0", True, "allowed"), ("2", False, "switched off for all")],
)
def test_io_uring_that_is_switched_off_is_found(
    state: str, good: bool, seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch = tmp_path / "io_uring_disabled"
    switch.write_text(f"{state}\n")
    monkeypatch.setattr(host_devices, "IO_URING", str(switch))
    found = findings(monkeypatch)["io_uring"]
    assert (found.good, found.seen) == (good, seen)
    assert bool(found.remedy) == (not good)


def test_what_devices_lack_is_found_and_needed_by_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(program: str, package: str) -> str:
        raise HostError(f"there is no {program} on this host", hint=f"apt install {package}")

    monkeypatch.setattr(processes, "find", nowhere)
    monkeypatch.setattr(host_devices, "TUN", "/dev/none")
    found = findings(monkeypatch)
    assert host.can_run_linux(list(found.values()))
    for name in ("taps", "qemu-storage-daemon", "virtiofsd", "dnsmasq", "nft"):
        assert not found[name].good
        assert found[name].remedy
