"""What a Debian guest has that Debian does not give it: files, links, and what is left out."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

PACKAGES = (
    *("systemd", "systemd-sysv", "systemd-resolved", "udev", "dbus", "kmod"),
    *("iproute2", "iputils-ping", "procps", "less", "nano"),
)

# Each costs a guest in an emulator a second or more at every boot, e2scrub_reap as many as 27; and
# our kernel has no modules, seats or boot logs that these would serve.
_NOT_STARTED = (
    *("e2scrub_reap.service", "e2scrub_all.timer", "fstrim.timer", "dpkg-db-backup.timer"),
    *("apt-daily.timer", "apt-daily-upgrade.timer", "systemd-pstore.service"),
    *("systemd-logind.service", "modprobe@.service", "kmod-static-nodes.service"),
    *("systemd-update-utmp.service", "systemd-update-utmp-runlevel.service"),
    *("sys-kernel-debug.mount", "sys-kernel-tracing.mount", "sys-kernel-config.mount"),
    *("sys-fs-fuse-connections.mount", "proc-sys-fs-binfmt_misc.automount"),
)
# Each is a process before anything else is done; those for the terminal and /etc/fstab stay.
_GENERATORS = (
    *("cryptsetup", "debug", "gpt-auto", "hibernate-resume", "integritysetup", "rc-local"),
    *("run", "system-update", "sysv", "veritysetup"),
)
_STARTED = {
    "systemd-networkd.service": "multi-user.target.wants",
    "systemd-networkd.socket": "sockets.target.wants",
    "kvmpv-agent.service": "multi-user.target.wants",
}
_NO_NEED = ("usr/share/man", "usr/share/locale", "usr/share/info", "var/cache/apt", "var/lib/apt")
AGENT = "usr/lib/kvmpv/agent"

FILES = {
    # systemd lets the file system grow to its disk at each start.
    "etc/fstab": "/dev/vda  /  ext4  errors=remount-ro,x-systemd.growfs  0  1\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
    "etc/default/locale": "LANG=C.UTF-8\n",
    # Any name that a network card may get; the lease follows the card, not the image.
    "etc/systemd/network/80-kvmpv.network": (
        "[Match]\nType=ether\n\n[Network]\nDHCP=yes\n\n"
        "[DHCPv4]\nClientIdentifier=mac\nUseHostname=no\nUseDomains=yes\n"
    ),
    # The network's own names may have no dot in them, and its server knows them.
    "etc/systemd/resolved.conf.d/kvmpv.conf": (
        "[Resolve]\nResolveUnicastSingleLabel=yes\nLLMNR=no\nMulticastDNS=no\n"
    ),
    "etc/systemd/system/kvmpv-agent.service": (
        "[Unit]\n"
        "Description=Commands from the host (kvmpv run --exec)\n"
        "ConditionPathExists=/dev/kvmpv-exec\n"
        "\n"
        "[Service]\n"
        f"ExecStart=/{AGENT} --service /dev/kvmpv-exec\n"
        "Restart=always\n"
        "OOMScoreAdjust=-900\n"
        "\n"
        "[Install]\n"
        "WantedBy=multi-user.target\n"
    ),
    # Present and empty: no first boot, and each copy of the image gets a name of its own.
    "etc/machine-id": "",
}
_RESOLVER = "../run/systemd/resolve/stub-resolv.conf"


def finish(root: Path, hostname: str, agent: Path) -> None:
    """Turn what mmdebstrap made at ``root`` into a guest of ours. Raises OSError."""
    for path, text in FILES.items():
        _write(root / path, text)
    _write(root / "etc/hostname", f"{hostname}\n")
    with (root / "etc/hosts").open("a") as hosts:
        hosts.write(f"127.0.1.1 {hostname}\n")
    units = root / "etc/systemd/system"
    for unit, wants in _STARTED.items():
        own = f"etc/systemd/system/{unit}" in FILES
        where = "/etc/systemd/system" if own else "/lib/systemd/system"
        _link(f"{where}/{unit}", units / wants / unit)
    for unit in _NOT_STARTED:
        _link("/dev/null", units / unit)
    for name in _GENERATORS:
        _link("/dev/null", root / f"etc/systemd/system-generators/systemd-{name}-generator")
    # It asks for more process numbers than our kernel has, and fails the boot by that.
    _link("/dev/null", root / "etc/sysctl.d/50-pid-max.conf")
    _link(_RESOLVER, root / "etc/resolv.conf")
    _no_password(root / "etc/shadow")
    (root / AGENT).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(agent, root / AGENT)
    (root / AGENT).chmod(0o755)
    _strip(root)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(0o644)


def _link(target: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def _no_password(shadow: Path) -> None:
    """Let root in without a password: whoever has the terminal has the machine."""
    lines = shadow.read_text().splitlines()
    fields = [line.split(":") for line in lines]
    text = "".join(":".join([f[0], "" if f[0] == "root" else f[1], *f[2:]]) + "\n" for f in fields)
    shadow.write_text(text)


def _strip(root: Path) -> None:
    """Empty the folders of what no guest misses, and tell systemd that all is up to date."""
    for place in _NO_NEED:
        for path in (root / place).glob("*"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    (root / "var/lib/apt/lists/partial").mkdir(parents=True)
    (root / "var/cache/apt/archives/partial").mkdir(parents=True)
    newest = (root / "usr").stat().st_mtime_ns
    # ConditionNeedsUpdate= compares these with /usr: no caches are made anew at the first boot.
    for place in ("etc/.updated", "var/.updated"):
        (root / place).touch()
        os.utime(root / place, ns=(newest, newest))
