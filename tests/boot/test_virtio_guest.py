"""Virtio devices as a patched guest's own drivers see them, over the kvmpv transport."""

from __future__ import annotations

import re
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvmpv
from tests.boot.shell import text, wait_for
from tests.waiting import until

BUS = "/sys/bus/virtio/devices"
DRIVERS = "/sys/bus/virtio/drivers"
VERSION_1, ACCESS_PLATFORM, INDIRECT_DESC, EVENT_IDX = 32, 33, 28, 29
SIZE = 8 << 20
CALLS_A_DEVICE = 10
CONSOLES = 3  # event channels that a guest has without any device: terminal, requests, agent


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("disk") / "d.img"
    path.write_bytes(b"kvmpv was here\n".ljust(SIZE, b"\0"))
    return path


@pytest.fixture(scope="module")
def guest(image: Path) -> Iterator[kvmpv.Domain]:
    """A guest with a disk of two queues and a source of randomness."""
    disks = [f"{image},queues=2"]
    with kvmpv.Domain(vcpus=2, memory=128 << 20, disks=disks, rng="on", stats=True) as domain:
        yield domain


def counted(domain: kvmpv.Domain, *prefixes: str) -> int:
    """Return the sum of the counters whose names begin so."""
    return sum(value for name, value in domain.stats().items() if name.startswith(prefixes))


def disk(domain: kvmpv.Domain) -> str:
    """Return the virtio name of the first disk."""
    return text(domain, "basename $(readlink -f /sys/block/vda/device)")


# First, for its counters are those of the boot.
def test_device_comes_up_with_about_ten_calls(guest: kvmpv.Domain) -> None:
    text(guest, "true")  # the agent is there, and has its channel
    transport = counted(guest, "hypercall_virtio_")
    channels = counted(guest, "hypercall_evtchn_alloc", "hypercall_evtchn_bind") - 2 * CONSOLES
    assert 0 < transport + channels <= 2 * CALLS_A_DEVICE
    assert not counted(guest, "exit_")


def test_devices_are_on_the_bus_with_their_drivers(guest: kvmpv.Domain) -> None:
    said = text(
        guest, f"cd {BUS} && for d in *; do cat $d/device; basename $(readlink $d/driver); done"
    )
    assert sorted(said.split()) == ["0x0002", "0x0004", "virtio_blk", "virtio_rng"]


def test_features_of_the_transport_are_accepted(guest: kvmpv.Domain) -> None:
    for features in text(guest, f"cat {BUS}/*/features").split():
        for bit in (VERSION_1, ACCESS_PLATFORM, INDIRECT_DESC, EVENT_IDX):
            assert features[bit] == "1", (bit, features)


def test_queues_interrupt_on_cpus_of_their_own(guest: kvmpv.Domain) -> None:
    lines = text(guest, f"grep '{disk(guest)}-req' /proc/interrupts").splitlines()
    irqs = [line.split(":")[0].strip() for line in lines]
    affinities = [text(guest, f"cat /proc/irq/{irq}/smp_affinity_list") for irq in irqs]
    assert sorted(affinities) == ["0", "1"]
    assert all("kvmpv" in line and "edge" in line for line in lines)


def test_io_does_not_enter_the_vmm(guest: kvmpv.Domain) -> None:
    read = "dd if=/dev/vda of=/dev/null bs=4k count={} iflag=direct 2>/dev/null"

    def calls_of(blocks: int) -> int:
        before = counted(guest, "exits_to_user_space")
        text(guest, read.format(blocks))
        return counted(guest, "exits_to_user_space") - before

    calls_of(1)
    few, many = calls_of(8), calls_of(1000)
    assert many - few < 100  # neither is exact: the command's own streams are calls
    assert guest.stats()["device0_doorbell_exits"] == 0


def test_disk_reads_what_the_image_has(guest: kvmpv.Domain) -> None:
    assert text(guest, "head -n 1 /dev/vda") == "kvmpv was here"
    assert text(guest, "cat /sys/block/vda/size") == str(SIZE // 512)


def test_randomness_comes(guest: kvmpv.Domain) -> None:
    assert text(guest, "cat /sys/class/misc/hw_random/rng_current").startswith("virtio_rng")
    assert text(guest, "dd if=/dev/hwrng bs=32 count=1 2>/dev/null | wc -c") == "32"


def test_growth_is_seen_while_the_guest_runs(guest: kvmpv.Domain) -> None:
    guest.resize_disk(0, 2 * SIZE)
    wait_for(guest, "cat /sys/block/vda/size", str(2 * SIZE // 512))


def test_driver_goes_and_comes_in_a_loop(guest: kvmpv.Domain) -> None:
    name = disk(guest)
    loop = f"""cd {DRIVERS}/virtio_blk && for i in $(seq 10); do
        echo {name} > unbind && [ ! -e /sys/block/vda ] && echo {name} > bind || exit 1
        head -n 1 /dev/vda; done"""
    assert text(guest, loop).split("\n") == ["kvmpv was here"] * 10
    assert "WARNING: CPU" not in text(guest, "dmesg")


def test_transport_lets_a_device_go_and_opens_it_again(guest: kvmpv.Domain) -> None:
    platform = text(guest, f"basename $(readlink -f {BUS}/{disk(guest)}/..)")
    loop = f"""cd /sys/bus/platform/drivers/virtio-kvmpv && for i in $(seq 5); do
        echo {platform} > unbind && echo {platform} > bind || exit 1; done
        head -n 1 /dev/vda"""
    assert text(guest, loop) == "kvmpv was here"
    assert guest.stats()["hypercall_virtio_close"] >= 5


def test_disks_come_and_go_while_the_guest_runs(guest: kvmpv.Domain) -> None:
    for _ in range(3):
        number = guest.attach_disk("null:16M")
        wait_for(guest, "cat /sys/block/vdb/size", str((16 << 20) // 512))
        text(guest, "dd if=/dev/vdb of=/dev/null bs=64k count=16 iflag=direct 2>/dev/null")
        guest.detach(number)
        wait_for(
            guest,
            "ls -d /sys/block/vdb /sys/bus/platform/devices/*kvmpv.* 2>/dev/null | wc -l",
            "2",
        )
    assert "WARNING: CPU" not in text(guest, "dmesg")


def test_disk_in_use_that_goes_fails_and_leaves_the_rest_alone(guest: kvmpv.Domain) -> None:
    number = guest.attach_disk("null:16M")
    wait_for(guest, "cat /sys/block/vdb/size", str((16 << 20) // 512))
    read = "dd if=/dev/vdb of=/dev/null bs=4k count=64 iflag=direct 2>/dev/null"
    script = f"exec 3</dev/vdb; echo open > /tmp/held; while {read}; do :; done"
    guest.exec(f"({script}; echo failed > /tmp/held) >/dev/null 2>&1 &")
    wait_for(guest, "cat /tmp/held", "open")
    guest.detach(number)
    wait_for(guest, "cat /tmp/held", "failed")
    wait_for(guest, "ls /sys/block | grep -c vdb", "0")
    assert text(guest, "head -n 1 /dev/vda") == "kvmpv was here"


def test_reboot_finds_the_devices_again_and_power_off_is_one() -> None:
    with kvmpv.Domain(disks=["null:16M,readonly"], cmdline="loglevel=7") as domain:
        assert text(domain, "cat /sys/block/vda/ro") == "1"
        domain.request_reboot()
        until(lambda: domain.status()["boots"] == "2", 60, 0.2)
        text(domain, "dd if=/dev/vda of=/dev/null bs=1M iflag=direct 2>/dev/null")
        read(domain, "a terminal that is full", 0.1)  # what finds no room there is lost
        domain.request_poweroff()
        said = read(domain, "Power down|System halted", 60)
        assert domain.wait_for_end().kind == "poweroff"
    assert "Power down" in said
    assert "System halted" not in said


def read(domain: kvmpv.Domain, until: str, seconds: float) -> str:
    """Return what the terminal shows, until something that it is waited for, or nothing comes."""
    said = b""
    while not re.search(until.encode(), said):
        if not select.select([domain.terminal], [], [], seconds)[0]:
            break
        said += domain.terminal.recv(1 << 16)
    return said.decode(errors="replace")
