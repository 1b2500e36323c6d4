"""What this host has for guests' devices: findings that no guest without devices needs."""

from __future__ import annotations

import os

from kvmpv.errors import HostError
from kvmpv.toolstack import processes, servers
from kvmpv.toolstack.finding import Finding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

TUN: Final = "/dev/net/tun"
VHOST_NET: Final = "/dev/vhost-net"
IO_URING: Final = servers.IO_URING_SWITCH
IO_URING_STATES: Final = {
    "0": "allowed",
    "1": "for root and a group only",
    "2": "switched off for all",
}

# What is needed for what, and the Debian package that has it.
PROGRAMS: Final = (
    ("qemu-storage-daemon", "qemu-system-common", "disks of other formats than raw"),
    ("virtiofsd", "qemu-system-common", "--share and --root DIR"),
    ("dnsmasq", "dnsmasq-base", "--net nat"),
    ("nft", "nftables", "--net nat"),
)


def findings() -> list[Finding]:
    """Look at what devices need; quick."""
    found = [
        _device("taps", TUN, "modprobe tun, and be root; or --net user", "no --net nat, bridge"),
        _device("vhost-net", VHOST_NET, "modprobe vhost_net", "our own worker carries packets"),
        _io_uring(),
    ]
    found += [_program(*row) for row in PROGRAMS]
    return [*found, _passt()]


def _device(name: str, path: str, remedy: str, without: str) -> Finding:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return Finding(name, False, f"{path}: {error.strerror}; {without}", remedy)
    return Finding(name, True, f"{path} opens")


def _io_uring() -> Finding:
    try:
        with open(IO_URING) as file:
            state = file.read().strip()
    except OSError:
        state = "0"  # a kernel from before it could be switched off
    good = state == "0" or (state == "1" and os.geteuid() == 0)
    seen = IO_URING_STATES.get(state, state)
    return Finding("io_uring", good, seen, "sysctl kernel.io_uring_disabled=0: disks need it")


def _program(name: str, package: str, purpose: str) -> Finding:
    try:
        return Finding(name, True, processes.find(name, package))
    except HostError as error:
        return Finding(name, False, f"not there: no {purpose}", error.hint)


def _passt() -> Finding:
    try:
        return Finding("passt", True, servers.passt())
    except HostError as error:
        return Finding("passt", False, f"{error.message}: no --net user", error.hint)
