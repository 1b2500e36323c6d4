"""Devices come, change and go while a Linux guest runs; shared folders and other formats work."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import kvmpv

MIB = 1 << 20


def said(domain: kvmpv.Domain, command: str) -> str:
    done = domain.exec(command)
    assert done.status == 0, done
    return str(done).strip()


def until(domain: kvmpv.Domain, condition: str) -> None:
    """Wait in the guest until a condition holds, up to twenty seconds."""
    said(domain, f"for i in $(seq 200); do {condition} && exit 0; sleep 0.1; done; exit 1")


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
        until(domain, "test -e /sys/block/vda/serial")  # shortly after the device itself
        assert said(domain, "cat /sys/block/vda/serial") == "late"
        domain.resize_disk(disk, 16 * MIB)
        until(domain, f"grep -q {16 * MIB // 512} /sys/block/vda/size")
        worker = next(int(one["pid"]) for one in domain.devices() if one["kind"] == "blk")
        os.kill(worker, signal.SIGKILL)
        said(domain, "yes | dd of=/dev/vda bs=64k count=16 conv=fsync")
        mount = "mkdir -p /mnt/l; mount -t virtiofs late /mnt/l"
        until(domain, f"({mount}) 2>/dev/null")
        assert said(domain, "cat /mnt/l/file; echo back > /mnt/l/back; umount /mnt/l") == (
            "from the host"
        )
        domain.detach(disk)
        domain.detach(share)
        until(domain, "! test -e /dev/vda")
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
        assert "root / virtiofs" in said(domain, "cat /proc/mounts")
        assert domain.exec("echo x > /file").status != 0
        # Else the guest would not flush what the daemon caches.
        assert said(domain, "cat /sys/block/vda/queue/write_cache") == "write back"
        said(domain, "dd if=/bin/busybox of=/dev/vda bs=64k count=4 conv=fsync")
    assert not (root / "file").exists()
    raw = tmp_path / "raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", image, raw], check=True)
    assert raw.read_bytes()[: 256 << 10] == (root / "bin/busybox").read_bytes()[: 256 << 10]
