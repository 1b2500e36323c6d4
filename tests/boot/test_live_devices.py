"""Devices come, change and go while a Linux guest runs; shared folders and other formats work."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import kvmpv
from tests.boot.shell import text, wait_for

MIB = 1 << 20


def test_disk_folder_and_card_come_and_go(tmp_path: Path) -> None:
    late, folder = tmp_path / "late.img", tmp_path / "folder"
    late.touch()
    os.truncate(late, 8 * MIB)
    folder.mkdir()
    (folder / "file").write_text("from the host\n")
    with kvmpv.Domain(rng="on") as domain:
        domain.exec("true")
        disk = domain.attach_disk(f"{late},serial=late")
        share = domain.attach_share(f"{folder},tag=late")
        wait_for(domain, "cat /sys/block/vda/serial", "late")
        domain.resize_disk(disk, 16 * MIB)
        wait_for(domain, "cat /sys/block/vda/size", f"{16 * MIB // 512}")
        worker = next(int(one["pid"]) for one in domain.devices() if one["kind"] == "blk")
        os.kill(worker, signal.SIGKILL)
        text(domain, "yes | dd of=/dev/vda bs=64k count=16 conv=fsync 2>/dev/null")
        mount = "mkdir -p /mnt/l; mount -t virtiofs late /mnt/l"
        wait_for(domain, f"({mount}) && echo mounted", "mounted")
        assert text(domain, "cat /mnt/l/file; echo back > /mnt/l/back; umount /mnt/l") == (
            "from the host"
        )
        domain.detach(disk)
        domain.detach(share)
        wait_for(domain, "ls /dev/vda", "")
        assert [one["kind"] for one in domain.devices()] == ["rng"]
    assert late.read_bytes()[: 2 * 8] == b"y\n" * 8
    assert (folder / "back").read_text() == "back\n"


def test_folder_as_root_and_qcow2_disk(tmp_path: Path) -> None:
    root, image = tmp_path / "root", tmp_path / "disk.qcow2"
    for name in ("bin", "dev", "proc", "sys", "run", "tmp", "root"):  # it cannot make them itself
        (root / name).mkdir(parents=True)
    (root / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (root / "bin/busybox").chmod(0o755)
    for name in ("sh", "cat", "dd", "grep"):
        (root / "bin" / name).symlink_to("busybox")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "8M"], check=True)
    with kvmpv.Domain(root=f"{root},ro", disks=[str(image)]) as domain:
        assert "root / virtiofs" in text(domain, "cat /proc/mounts")
        assert domain.exec("echo x > /file").status != 0
        # Else the guest would not flush what the daemon caches.
        assert text(domain, "cat /sys/block/vda/queue/write_cache") == "write back"
        text(domain, "dd if=/bin/busybox of=/dev/vda bs=64k count=4 conv=fsync 2>/dev/null")
    assert not (root / "file").exists()
    raw = tmp_path / "raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", image, raw], check=True)
    assert raw.read_bytes()[: 256 << 10] == (root / "bin/busybox").read_bytes()[: 256 << 10]
