"""scripts/bench guest-net: iperf3 between host and guest, ours against QEMU's microvm.

Both are on taps in a network namespace of their own, once carried by the VMM's own process (the
worker, QEMU), once by vhost-net.
"""

from __future__ import annotations

import subprocess
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from kvmpv.errors import HostError
from scripts.tools.bench import exits, guest_tools, namespace, rivals
from scripts.tools.bench.figures import Figure

if TYPE_CHECKING:
    from scripts.tools.bench.rivals import Guest, Sample

MIB = 1 << 20
UNITS = rivals.Units("Gbit/s", 8 * MIB / 1e9, "a MiB")
TAPS = ("ours", "theirs")
WARM_UP = 1.0  # MiB
DIRECTIONS = {"guest to host": ("", 1), "host to guest": ("-R", 9)}  # column of /proc/net/dev


def figures(rounds: int) -> list[Figure]:
    """Measure both directions with both ways to carry packets."""
    subprocess.run(["modprobe", "--quiet", "vhost_net"], check=False)  # or it is built in
    with exits.tracing(), namespace.entered():
        _make_taps()
        return [figure for vhost in ("off", "on") for figure in _guests(vhost, rounds)]


def _make_taps() -> None:
    for number, name in enumerate(TAPS):
        _ip("tuntap", "add", "dev", name, "mode", "tap", "vnet_hdr")
        _ip("address", "add", f"{_address(number, 1)}/24", "dev", name)
        _ip("link", "set", name, "up")


def _guests(vhost: str, rounds: int) -> list[Figure]:
    with ExitStack() as stack:
        both: list[Guest] = [
            stack.enter_context(rivals.Ours(disks=[], nets=[f"tap={TAPS[0]},vhost={vhost}"])),
            stack.enter_context(rivals.Theirs(_options(vhost))),
        ]
        for number, guest in enumerate(both):
            guest.shell.run(f"ip address add {_address(number, 2)}/24 dev eth0")
            guest.shell.run("ip link set eth0 up")
        return [figure for way in DIRECTIONS for figure in _job(both, vhost, way, rounds)]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _address(network: int, host: int) -> str:
    return f"10.0.{network}.{host}"


def _options(vhost: str) -> list[str]:
    return [
        *("-netdev", f"tap,id=n,ifname={TAPS[1]},script=no,downscript=no,vhost={vhost}"),
        *("-device", "virtio-net-device,netdev=n"),
    ]


def _job(both: list[Guest], vhost: str, direction: str, rounds: int) -> list[Figure]:
    option, column = DIRECTIONS[direction]
    samples: list[list[Sample]] = [[] for _ in both]
    counts = [lambda name=name: _carried(name, column) for name in TAPS]
    with ExitStack() as stack:
        for number, (guest, count) in enumerate(zip(both, counts, strict=True)):
            _serve(stack, _address(number, 1))
            command = ("iperf3", "-c", _address(number, 1), "-t", "86400", option)
            guest.shell.load(guest_tools.command(*command))
            rivals.warm_up(guest, count, WARM_UP)
        for _ in range(rounds):
            for kept, guest, count in zip(samples, both, counts, strict=True):
                kept.append(rivals.measure(guest, count))
        for guest in both:
            guest.shell.unload()
    how = "vhost-net" if vhost == "on" else "user space"
    return rivals.compare(f"TCP, {direction}, {how}", UNITS, samples)


def _serve(stack: ExitStack, address: str) -> None:
    """Have iperf3 serve until the stack's end; return once it listens."""
    server = subprocess.Popen(
        ["iperf3", "-s", "-i", "0", "--forceflush", "-B", address],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    stack.callback(server.wait)
    stack.callback(server.kill)
    assert server.stdout is not None
    stack.callback(server.stdout.close)
    said = ""
    while "listening" not in said:
        line = server.stdout.readline()
        if not line:
            raise HostError(f"iperf3 ends: {said.strip()}", hint="run it again")
        said += line


def _carried(tap: str, column: int) -> float:
    """Return the MiB that a tap has carried in one direction; QEMU and our worker alike."""
    thread = threading.get_native_id()
    for line in Path(f"/proc/self/task/{thread}/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == tap:
            return int(numbers.split()[column - 1]) / MIB
    return 0.0
