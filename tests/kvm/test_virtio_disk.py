"""A disk over the virtio transport: the guest's driver, the real VMM, a backend of the test's."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.kvm import refguest
from tests.kvm.backends import Disk, DiskGuest, SilentDisk, StillbornDisk
from tests.kvm.command import once

if TYPE_CHECKING:
    from kvmpv import End


def run(test: str, *disks: Disk, **options: object) -> tuple[End, DiskGuest]:
    with DiskGuest(test, *disks, **options) as guest:
        return guest.end(), guest


def wait_for_device(guest: DiskGuest, fact: str, value: str) -> None:
    """Wait until the VMM says so of a device."""
    deadline = time.monotonic() + refguest.PATIENCE
    while guest.domain.control("devices").get(fact, "") != value:
        assert time.monotonic() < deadline, guest.domain.control("devices")


def test_transport_does_as_its_document_says() -> None:
    end, guest = run("virtio", Disk(0), Disk(7))
    assert guest.failures == []
    assert "virtio 2 devices" in guest.text
    assert end.kind == "poweroff"


@once
def test_disk_is_written_flushed_and_read_back() -> None:
    disk = Disk(3)
    with DiskGuest("disk n=32 depth=16 size=4096", disk) as guest:
        guest.end()
        assert guest.failures == []
        assert os.pread(disk.image, 8, 512 * 9) == (0x6B766D7076000000 + 9).to_bytes(8, "little")


def exits_of(requests: int) -> int:
    end, guest = run(f"disk n={requests} depth=8", Disk(0), stats=True)
    assert guest.failures == []
    assert end.stats["device0_doorbell_exits"] == 0
    exits: int = end.stats["exits_to_user_space"]
    return exits


def test_requests_do_not_enter_the_vmm() -> None:
    assert exits_of(16) == exits_of(400)


@once
def test_disk_comes_up_with_about_ten_exits() -> None:
    end, _ = run("disk n=8", Disk(0), stats=True)
    calls = ("virtio_open", "virtio_status", "virtio_queue", "virtio_bind", "virtio_devices")
    assert sum(end.stats[f"hypercall_{name}"] for name in calls) <= 7  # one status is the reset
    assert end.stats["interrupt_reroutes"] == 1


def test_broken_rings_stop_the_device_until_its_reset() -> None:
    end, guest = run("badrings", Disk(0))
    assert guest.failures == []
    assert guest.text.count("status 4f") == guest.text.count("broken ") == 11
    assert end.kind == "poweroff"


@once
def test_resets_in_flight_and_kicks_at_nothing_do_no_harm() -> None:
    end, guest = run("resets n=20", Disk(0), stats=True)
    assert guest.failures == []
    assert end.stats["device0_doorbell_exits"] > 40


@once
def test_killed_backends_requests_are_answered_by_the_next() -> None:
    disk = Disk(0, hold="1")
    with DiskGuest("disk n=8 depth=8", disk) as guest:
        guest.expect("disk sectors")
        for connections in ("2", "3"):
            disk.kill()
            wait_for_device(guest, "0.backend", "away")
            guest.replace(disk, hold=str(3 - int(connections)))
            if connections == "2":  # with the last one the guest is soon done
                wait_for_device(guest, "0.connections", connections)
        guest.end()
        assert guest.failures == []
        assert {"disk-written", "disk-read-back"} <= guest.passed


@once
def test_guest_that_opens_a_disk_waits_for_the_successor_of_a_backend_that_died_at_once() -> None:
    disk = StillbornDisk(0)
    with DiskGuest("disk n=4", disk) as guest:
        wait_for_device(guest, "0.why", "the_other_side_is_gone:_Broken_pipe")
        guest.replace(disk)
        assert guest.end().kind == "poweroff"
        assert guest.failures == []
        assert "ok disk" in guest.text


@once
@pytest.mark.parametrize("request_under_way", [0, 1])
def test_backend_without_a_log_is_replaced_only_when_it_owes_nothing(
    request_under_way: int,
) -> None:
    disk = Disk(0, log="0")
    with DiskGuest(f"watchdisk until=4096 request={request_under_way}", disk) as guest:
        guest.expect("change status f")
        disk.kill()
        if request_under_way:
            # It was answered before the kill: nothing is owed, but what comes now waits.
            wait_for_device(guest, "0.backend", "away")
        guest.replace(disk)
        wait_for_device(guest, "0.backend", "connected")
        os.ftruncate(disk.image, 4096 * 512)
        guest.expect("sectors 4096")
        guest.end()
        assert guest.failures == []
        assert "status 4f" not in guest.text


@once
def test_lost_requests_reset_the_device_or_end_the_domain_as_configured() -> None:
    for loss, kind in (("reset", "poweroff"), ("crash", "crash")):
        disk = Disk(0, order=f",loss={loss}", log="0", hold="1")
        with DiskGuest("watchdisk request=1", disk) as guest:
            guest.expect("watching")
            time.sleep(0.2)  # the backend has taken the request by now, or it is lost all the same
            disk.kill()
            if loss == "reset":
                guest.expect("status 4f")
                disk.options = {}
                guest.replace(disk)
            end = guest.end()
        assert end.kind == kind
        assert guest.failures == []


@once
def test_grown_disk_is_seen_by_its_guest() -> None:
    disk = Disk(0)
    with DiskGuest("watchdisk until=6144", disk) as guest:
        guest.expect("watching")
        os.ftruncate(disk.image, 6144 * 512)
        guest.expect("generation 4 sectors 6144")
        guest.end()
        assert guest.failures == []


@once
def test_disk_comes_and_goes_while_the_guest_runs() -> None:
    first, late = Disk(0), Disk(1)
    with DiskGuest("requests,requests,watchdisk,requests,requests devices=1", first) as guest:
        guest.expect("ready")
        guest.domain.control("device-remove 0")
        guest.expect("ready", times=2)
        wait_for_device(guest, "0.kind", "")
        guest.disks = (first, late)
        assert guest.send("device-add blk queues=1", late.start()) == "ok number=0"
        guest.expect("change status f")
        guest.domain.control("device-remove 0")
        guest.expect("removed 1")
        guest.expect("devices 0")
        wait_for_device(guest, "0.kind", "")
        guest.expect("ready", times=4)  # it ends only when it is asked to: above it must be there
        guest.domain.request_poweroff()
        assert guest.end().kind == "poweroff"


@once
def test_domain_without_devices_takes_none_later() -> None:
    late = Disk(0)
    with DiskGuest("requests") as guest:
        guest.expect("ready")
        guest.disks = (late,)
        assert guest.send("device-add blk", late.start()).startswith("error device-add: ")
        assert guest.domain.control("devices") == {}


@once
def test_reboot_opens_the_disk_again() -> None:
    disk = Disk(0)
    with DiskGuest("disk,reboot n=8", disk) as guest:
        guest.expect("seed")
        guest.domain.exec_port.sendall(b"r")
        del guest.output[:]
        guest.expect("seed")
        assert guest.domain.control("devices")["0.connections"] == "1"
        guest.domain.attach(1).sendall(b"p")
        guest.end()
        assert guest.failures == []


@once
def test_reboot_waits_for_requests_and_the_end_does_not_wait_for_the_reboot() -> None:
    disk = Disk(0, hold="1")
    with DiskGuest("watchdisk,reboot request=1 leave=1", disk) as guest:
        guest.expect("seed")
        disk.kill()
        wait_for_device(guest, "0.backend", "away")
        guest.domain.exec_port.sendall(b"r")
        assert guest.domain.status()["boots"] == "1"
        guest.replace(disk, hold="0")  # it answers for what the dead one had
        guest.expect("seed", times=2)
        assert guest.domain.status()["boots"] == "2"
        assert disk.process is not None
        disk.process.send_signal(signal.SIGSTOP)
        guest.domain.attach(1).sendall(b"r")
        started = time.monotonic()
        assert guest.domain.status()["boots"] == "2"  # the control socket answers meanwhile
        assert guest.domain.kill().kind == "killed"
        assert time.monotonic() - started < 3


@once
def test_silent_backend_holds_up_neither_other_devices_nor_pause_nor_end() -> None:
    with DiskGuest("disk,virtio", Disk(0), SilentDisk(1)) as guest:
        guest.expect("ok disk-end-refused")
        guest.expect("device 0 type 2")
        guest.expect("ok virtio-open-version", times=2)  # the next call waits for the backend
        started = time.monotonic()
        guest.domain.pause()
        guest.domain.resume()
        assert guest.domain.status()["state"] == "running"
        assert guest.domain.control("devices")["1.state"] == "unused"
        assert guest.domain.kill().kind == "killed"
        assert time.monotonic() - started < 3


@once
def test_backend_that_stops_answering_holds_up_neither_pause_nor_end() -> None:
    disk = Disk(0)
    with DiskGuest("watchdisk until=4096,disk", disk) as guest:
        guest.expect("watching")
        assert disk.process is not None
        os.ftruncate(disk.image, 4096 * 512)
        guest.expect("sectors 4096")
        disk.process.send_signal(signal.SIGSTOP)
        started = time.monotonic()
        guest.domain.pause()
        guest.domain.resume()
        assert guest.domain.status()["state"] == "running"
        assert guest.domain.kill().kind == "killed"
        assert time.monotonic() - started < 3
