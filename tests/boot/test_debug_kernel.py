"""The patched kernel under lockdep and KASAN, with all that its drivers do: nothing is reported.

Runs only when the kernel's inputs or this file have changed (scripts/tools/suite/kernels.py).
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

import kvmpv
from kvmpv.cache import folder

MIB = 1 << 20
REPORTS = (
    "BUG:|WARNING: CPU|KASAN:|possible circular|inconsistent lock|suspicious RCU|"
    "DMA-API: .*: |INFO: task"
)


def said(domain: kvmpv.Domain, command: str) -> str:
    done = domain.exec(command)
    assert done.status == 0, (command, done, str(domain.exec("dmesg | tail -60")))
    return str(done).strip()


@pytest.mark.timeout(400)
def test_checks_of_the_debug_kernel_find_nothing(tmp_path: Path) -> None:
    # Without vsock: Linux's own driver has eight event buffers to a cache line, of which the checks
    # of DMA tell.
    current = Path(folder(), "current")
    paths = [tmp_path / name for name in ("one.img", "two.img")]
    for path in paths:
        path.touch()
        os.truncate(path, 8 * MIB)
    domain = kvmpv.Domain(
        kernel=current / "vmlinux-debug",
        initrd=current / "initrd.cpio",
        memory=512 * MIB,
        vcpus=2,
        max_vcpus=3,
        rng="on",
        nets=["nat"],
        disks=[f"{paths[0]},queues=2"],
    )
    with domain:
        assert "-debug" in said(domain, "uname -r")
        for word in ("lockdep", "kasan_"):
            said(domain, f"grep -qi {word} /proc/kallsyms")
        # Disks: I/O on both queues, the death of the worker, growth, one more, which goes again.
        write = "dd if=/dev/urandom of=/dev/{} bs=64k count=16 conv=fsync 2>/dev/null"
        said(domain, write.format("vda"))
        os.kill(int(domain.devices()[0]["pid"]), signal.SIGKILL)
        said(domain, write.format("vda"))
        domain.resize_disk(0, 16 * MIB)
        number = domain.attach_disk(str(paths[1]))
        said(domain, "for i in $(seq 100); do test -b /dev/vdb && exit; sleep 0.1; done; exit 1")
        said(domain, write.format("vdb"))
        domain.detach(number)
        # Drivers off and on again, vCPUs up and down, the network, interrupts moved.
        driver = "/sys/bus/virtio/drivers/virtio_blk"
        said(domain, f"echo virtio0 > {driver}/unbind && echo virtio0 > {driver}/bind")
        domain.set_vcpus(3)
        said(domain, "for i in $(seq 100); do test $(nproc) = 3 && exit; sleep 0.1; done; exit 1")
        said(domain, "echo 0 > /sys/devices/system/cpu/cpu1/online")
        said(domain, "echo 1 > /sys/devices/system/cpu/cpu1/online")
        said(domain, "for i in /proc/irq/*/smp_affinity; do echo 1 > $i; done 2>/dev/null; true")
        said(domain, write.format("vda"))
        said(domain, "ping -c 2 -W 10 $(ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p')")
        # All devices to sleep and back.
        said(domain, "echo devices > /sys/power/pm_test && echo freeze > /sys/power/state")
        said(domain, write.format("vda"))
        said(domain, "dd if=/dev/hwrng bs=16 count=1 2>/dev/null | wc -c | grep -q 16")
        domain.pause()
        domain.resume()
        found = domain.exec(f"dmesg | grep -E '{REPORTS}'")
        assert found.status == 1, str(domain.exec("dmesg"))
        assert domain.poweroff(timeout=60).kind == "poweroff"
