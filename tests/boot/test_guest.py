"""What a patched guest sees and says, seen from inside a running one."""

from __future__ import annotations

import _thread
import re
import time

import kvmpv
from kvmpv import abi
from tests.boot.shell import text, wait_for
from tests.waiting import until


def test_sysfs_names_the_hypervisor(guest: kvmpv.Domain) -> None:
    said = text(guest, "cd /sys/hypervisor && cat type version/major version/minor")
    assert said.split() == ["kvmpv", str(abi.VERSION_MAJOR), str(abi.VERSION_MINOR)]


def test_kvms_own_paravirtualisation_stays_on(guest: kvmpv.Domain) -> None:
    clock = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
    assert text(guest, f"cat {clock}") == "kvm-clock"
    log = text(guest, "dmesg")
    assert "Hypervisor detected: KVM" in log
    assert "x2apic enabled" in log
    for feature in ("PV IPIs", "PV spinlocks enabled", "pv remote TLB flush"):
        assert re.search(feature, log, re.IGNORECASE), feature
    counters = guest.stats()
    for name in ("pv_clock", "pv_eoi", "pv_steal_time", "x2apic"):
        assert counters[f"vcpus_with_{name}"] >= 2, name


def test_no_legacy_hardware_is_touched(guest: kvmpv.Domain) -> None:
    assert {line.split()[-1] for line in text(guest, "cat /proc/ioports").splitlines()} == {"kvmpv"}
    counters = guest.stats()
    assert not [name for name in counters if name.startswith("exit_")]
    log = text(guest, "dmesg")
    assert not re.search("i8042|PIT calibration|Calibrating delay loop\\.\\.\\.|rtc_cmos", log)


def test_frequencies_come_from_the_hypervisor(guest: kvmpv.Domain) -> None:
    log = text(guest, "dmesg")
    assert re.search(r"tsc: Detected \d+\.\d+ MHz", log)
    assert "Calibrating delay loop (skipped)" in log


def test_only_the_boot_vcpus_are_online(guest: kvmpv.Domain) -> None:
    assert text(guest, "nproc") == "2"
    assert text(guest, "cat /sys/devices/system/cpu/present") == "0-3"


def test_vcpus_go_offline_and_come_back(guest: kvmpv.Domain) -> None:
    online = "/sys/devices/system/cpu/cpu1/online"
    for _ in range(2):
        assert text(guest, f"echo 0 > {online}; nproc") == "1"
        assert text(guest, f"echo 1 > {online}; nproc") == "2"


def test_host_asks_for_more_and_fewer_vcpus(guest: kvmpv.Domain) -> None:
    guest.set_vcpus(4)
    wait_for(guest, "nproc", "4")
    guest.set_vcpus(2)
    wait_for(guest, "nproc", "2")
    while guest.status()["vcpus"] != "2":  # the guest counts one out before it has stopped
        time.sleep(0.1)


def test_sysrq_is_pressed(guest: kvmpv.Domain) -> None:
    guest.sysrq("h")
    wait_for(guest, "dmesg | grep -c 'sysrq: HELP'", "1")


def test_streams_are_apart_and_binary_clean(guest: kvmpv.Domain) -> None:
    every_byte = bytes(range(256)) * 1000
    done = guest.exec("cat; echo aside >&2; exit 7", stdin=every_byte)
    assert done.status == 7
    assert done.stdout == every_byte
    assert done.stderr == b"aside\n"


def test_commands_run_side_by_side(guest: kvmpv.Domain) -> None:
    answers: dict[int, str] = {}
    lock = _thread.allocate_lock()

    def ask(number: int) -> None:
        said = str(guest.exec(f"sleep 0.2; echo {number}")).strip()
        with lock:
            answers[number] = said

    for number in range(4):
        _thread.start_new_thread(ask, (number,))
    until(lambda: len(answers) == 4, 30)
    assert answers == {number: str(number) for number in range(4)}


def test_guest_goes_on_after_a_pause(guest: kvmpv.Domain) -> None:
    guest.pause()
    assert guest.status()["state"] == "paused"
    time.sleep(0.5)
    guest.resume()
    assert text(guest, "echo here") == "here"
    assert "soft lockup" not in text(guest, "dmesg")
