"""The box's initramfs: load modules, lay an overlay over the host's root, become the agent."""

from __future__ import annotations

from pathlib import Path

from kvmpv.devbox.debian import Kernel
from kvmpv.images import keyed, rootfs
from kvmpv.images.cpio import Archive

# What mounting the root needs, then what a KVM host needs.
MODULES = [
    "virtio_pci", "virtio_blk", "virtio_console", "9pnet_virtio", "9p", "overlay",
    "crc32c_generic", "ext4", "kvm_amd", "tun", "bridge", "vhost_net",
]  # fmt: skip
_SIGNATURE = b"~Module signature appended~\n"
_INIT = Path(__file__).with_name("init.sh")


def build(kernel: Kernel) -> Path:
    """Return the path of the initramfs for ``kernel``."""
    files: list[bytes | str | Path] = [_INIT, rootfs.busybox(), rootfs.agent()]
    parts = ["1", kernel.root.name, " ".join(MODULES), *files]

    def make(into: Path) -> None:
        into.write_bytes(_archive(kernel))

    return keyed.build("devbox/initramfs.cpio", keyed.digest(parts), make)


def load_order(dependencies: str, wanted: list[str]) -> list[str]:
    """Return module paths, each after those it needs, from the text of modules.dep."""
    paths, needs = {}, {}
    for line in dependencies.splitlines():
        path, _, rest = line.partition(":")
        paths[module_name(path)] = path
        needs[path] = rest.split()
    order: list[str] = []
    for name in wanted:
        if name not in paths:  # built into the kernel
            continue
        # modules.dep lists the nearest first.
        for path in [*reversed(needs[paths[name]]), paths[name]]:
            if path not in order:
                order.append(path)
    return order


def module_name(path: str) -> str:
    """Return the name that a module's file goes by in MODULES."""
    return path.rpartition("/")[2].partition(".")[0].replace("-", "_")


def unsigned(module: bytes) -> bytes:
    """Return a module without its signature: checking it takes the emulator long."""
    if not module.endswith(_SIGNATURE):
        return module
    end = len(module) - len(_SIGNATURE)
    length = int.from_bytes(module[end - 4 : end], "big")
    return module[: end - 12 - length]


def _archive(kernel: Kernel) -> bytes:
    archive = Archive()
    for path in ("dev", "proc", "sys", "lower", "rw", "new"):
        archive.directory(path)
    archive.device("dev/console", 0o600, 5, 1)
    archive.file("bin/busybox", rootfs.busybox().read_bytes(), 0o755)
    archive.file("agent", rootfs.agent().read_bytes(), 0o755)
    archive.file("init", _INIT.read_bytes(), 0o755)
    order = load_order((kernel.modules / "modules.dep").read_text(), MODULES)
    for index, path in enumerate(order):
        data = unsigned((kernel.modules / path).read_bytes())
        archive.file(f"modules/{index:02}-{module_name(path)}.ko", data)
    return archive.data()
