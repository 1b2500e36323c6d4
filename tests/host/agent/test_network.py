"""A small guest's init gets its addresses by DHCP; here it is process 1 of a few namespaces."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvmpv.images import rootfs
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

# A guest's end of a cable, and a DHCP server at the other. The init waits until the cable is there.
# It may mount nothing, so that it reads the command line that is put in its way.
SERVER = """
ip link set lo up
ip link add {guest} type veth peer name host
ip addr add 10.77.0.1/24 dev host
ip link set host up
ip link set {guest} netns /proc/$1/ns/net
echo > {folder}/go
dnsmasq --keep-in-foreground --port=0 --interface=host --bind-interfaces --no-ping \
    --conf-file=/dev/null --dhcp-range=10.77.0.50,10.77.0.60,2m --domain=kvmpv.test \
    --dhcp-option=6,10.77.0.1 --dhcp-leasefile={folder}/leases --user=root --pid-file=
true  # the shell stays process 1: with it all goes
"""
INIT = """
mount --make-rprivate /
mount -t proc proc {folder}/guest/proc
mount -t sysfs sysfs {folder}/guest/sys
echo kvmpv.shell=off {words} > {folder}/cmdline
mount --bind {folder}/cmdline {folder}/guest/proc/cmdline
cat {folder}/go > /dev/null
exec setpriv --bounding-set -sys_admin chroot {folder}/guest /init
"""


class Network:
    """A running init in ``folder``/guest, and its server."""

    def __init__(self, folder: Path, *, guest: str = "eth0", words: str = "") -> None:
        self.root = folder / "guest"
        for name in ("proc", "etc", "dev", "sys", "run", "tmp"):
            (self.root / name).mkdir(parents=True)
        (self.root / "init").write_bytes(rootfs.agent().read_bytes())
        (self.root / "init").chmod(0o755)
        subprocess.run(["mkfifo", folder / "go"], check=True)
        script = INIT.format(folder=folder, words=words)
        spaces = ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--kill-child"]
        self.init = subprocess.Popen([*spaces, "sh", "-c", script])
        script = SERVER.format(folder=folder, guest=guest)
        spaces = ["unshare", "--net", "--pid", "--fork", "--kill-child"]
        command = [*spaces, "sh", "-ec", script, "sh", str(self.init.pid)]
        self.server = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def inside(self, *command: str) -> str:
        """Run a command in the init's network."""
        enter = ["nsenter", "-t", str(self.init.pid), "--net", *command]
        return subprocess.run(enter, check=True, capture_output=True, text=True).stdout

    def serves(self) -> bool:
        """Tell whether the init is past its start."""
        children = Path(f"/proc/{self.init.pid}/task/{self.init.pid}/children").read_text()
        paths = [path for child in children.split() for path in Path(f"/proc/{child}/fd").iterdir()]
        return any("signalfd" in str(path.readlink()) for path in paths)

    def addresses(self, name: str = "eth0") -> list[str]:
        """Return the IPv4 addresses of an interface, none while it is not there."""
        for link in json.loads(self.inside("ip", "-j", "-4", "addr") or "[]"):
            if link.get("ifname") == name:
                return [each["local"] for each in link["addr_info"]]
        return []

    def end(self) -> None:
        """Take everything away."""
        for process in (self.server, self.init):
            process.kill()
            process.wait()


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    found = Network(tmp_path)
    yield found
    found.end()


def test_interface_gets_address_route_and_resolver(network: Network) -> None:
    resolver = network.root / "run/resolv.conf"
    until(resolver.exists)
    until(lambda: "nameserver" in resolver.read_text())
    assert resolver.read_text() == "search kvmpv.test\nnameserver 10.77.0.1\n"
    (address,) = network.addresses()
    assert address.startswith("10.77.0.")
    assert "default via 10.77.0.1 dev eth0" in network.inside("ip", "route")
    assert network.addresses("lo") == ["127.0.0.1"]


def test_network_that_is_off_stays_down(tmp_path: Path) -> None:
    network = Network(tmp_path, words="kvmpv.net=off")
    try:
        until(network.serves)
        assert network.addresses() == []
        assert "state DOWN" in network.inside("ip", "link", "show", "eth0")
    finally:
        network.end()
