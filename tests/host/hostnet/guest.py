"""A guest at the other end of a card's tap: a network stack in a namespace of its own."""

from __future__ import annotations

import os
import select
import threading
import time
from typing import TYPE_CHECKING

from kvmpv.hostnet import links, tap
from tests.host.net.namespace import Namespace

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

    from kvmpv.hostnet import Attachment

DHCP_SCRIPT = """#!/bin/sh
[ "$1" = bound ] || exit 0
ip address replace "$ip/$mask" dev "$interface"
ip link set "$interface" mtu "${mtu:-1500}"
[ -z "$router" ] || ip route replace default via "$router"
echo "$ip $router $dns $hostname $mtu" >"$RESULT"
"""


class Guest:
    """Carry frames between a card's tap and one in the guest's namespace, as a worker does."""

    def __init__(self, card: Attachment, mac: str = "") -> None:
        self.namespace = Namespace()
        self.interface, fds = self.namespace.call(tap.make, 1)
        self._inside = fds[0]
        self._outside = card.fds[0]
        self.namespace.call(links.set_mac, self.interface, mac or card.mac)
        self.namespace.call(links.set_up, self.interface)
        self._stop = os.eventfd(0)
        self._thread = threading.Thread(target=self._carry)
        self._thread.start()

    def _carry(self) -> None:
        other = {self._inside: self._outside, self._outside: self._inside}
        while True:
            ready = select.select([*other, self._stop], [], [])[0]
            if self._stop in ready:
                return
            for fd in ready:
                try:
                    os.write(other[fd], os.read(fd, 70000))
                except OSError:
                    pass  # one of the two is not up

    def dhcp(self, folder: Path) -> list[str]:
        """Get an address: return it, the router, the name server, the name and the MTU."""
        script, result = folder / "dhcp.sh", folder / "dhcp.result"
        script.write_text(DHCP_SCRIPT)
        script.chmod(0o755)
        options = ["-n", "-q", "-f", "-t", "10", "-T", "1", "-O", "hostname", "-O", "mtu"]
        self.run(
            *("env", f"RESULT={result}", "busybox", "udhcpc", "-i", self.interface),
            *("-s", str(script), *options),
        )
        return result.read_text().split()

    def ipv6(self) -> str:
        """Return the address that it has made itself of the network's prefix."""
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            for line in self.namespace.ip("-6 address show scope global").splitlines():
                if "inet6 fd" in line and "tentative" not in line:
                    return line.split()[1].partition("/")[0]
            time.sleep(0.02)
        raise AssertionError("no IPv6 address")

    def run(self, *argv: str) -> str:
        """Run a program in the guest."""
        return self.namespace.run(*argv)

    def close(self) -> None:
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        os.close(self._stop)
        os.close(self._inside)
        self.namespace.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
