"""dnsmasq, which gives the guests of a NAT network their addresses and names: dnsmasq(8)."""

from __future__ import annotations

import _socket
import os
import select
import signal
import time
from _blake2 import blake2s

from kvmpv.errors import HostError
from kvmpv.hostnet import tools

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

PACKAGE: Final = "dnsmasq-base"
FILES: Final = tuple(f"dnsmasq.{kind}" for kind in ("conf", "pid", "leases", "hosts", "cards"))
MARK: Final = ".kvmpv.invalid"  # a name whose first part says which state is served (RFC 2606)
DNS_PORT: Final = 53
RESOLVERS: Final = "/etc/resolv.conf"
HOSTS: Final = "/etc/hosts"
ANSWER_TIMEOUT: Final = 0.5  # seconds
PAUSE: Final = 0.01
PATIENCE: Final = 20.0
GENERATIONS: Final = 3  # the process that is started, its child and that one's stay for the daemon
STOP_TIMEOUT_MS: Final = 5000
LEASE: Final = "1h"
RA_INTERVAL: Final = 60  # seconds


class Server:
    """The dnsmasq of one network; its files lie in the network's folder."""

    __slots__ = ("_folder",)

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def _path(self, kind: str) -> str:
        return f"{self._folder}/dnsmasq.{kind}"

    @property
    def pid(self) -> int:
        """The process that serves; 0 when there is none."""
        try:
            with open(self._path("pid")) as file:
                pid = int(file.read())
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except (OSError, ValueError):
            return 0
        return pid if self._argument in words else 0  # the number may be another's by now

    @property
    def _argument(self) -> bytes:
        """What tells its command line from those of all others."""
        return f"--conf-file={self._path('conf')}".encode()

    def serve(self, settings: Sequence[str], address: str, cards: str, hosts: str) -> None:
        """Have it serve these cards and names, started with ``settings`` if it does not run.

        ``address`` is where it answers. Raise ``HostError`` when it does not.
        """
        mark = blake2s(f"{cards}|{hosts}".encode(), digest_size=8).hexdigest() + MARK
        changed = [
            _write(self._path("cards"), cards),
            _write(self._path("hosts"), f"{hosts}{address} {mark}\n"),
        ]
        pid = self.pid
        if not pid:
            self._start(settings)
        elif not any(changed):
            return
        # It is deaf to SIGHUP until it has begun to serve: so ask until it knows what is new.
        deadline = time.monotonic() + PATIENCE
        while True:
            if pid:
                try:
                    os.kill(pid, signal.SIGHUP)
                except ProcessLookupError:
                    pass  # it has just ended: it will not answer
            if _knows(address, mark):
                return
            if time.monotonic() > deadline:
                hint = "does a firewall drop what this host sends itself?"
                raise HostError(f"dnsmasq does not answer at {address}", hint=hint)
            pid = self.pid

    def _start(self, settings: Sequence[str]) -> None:
        self._end_all()  # one that has no file yet: who started it was killed meanwhile
        program = tools.require("dnsmasq", PACKAGE)
        lines = [
            *settings,
            f"user={_user(self._folder)}",
            f"pid-file={self._path('pid')}",
            f"dhcp-leasefile={self._path('leases')}",
            f"dhcp-hostsfile={self._path('cards')}",
            f"addn-hosts={self._path('hosts')}",
            # No log-facility: whatever file that names, /dev/null too, dnsmasq gives to its user.
        ]
        _write(self._path("conf"), "".join(f"{line}\n" for line in lines))
        status, said = tools.run([program, f"--conf-file={self._path('conf')}"])
        if status:
            reason = said.strip().splitlines()[-1:] or [f"status {status}"]
            raise HostError(f"dnsmasq does not start: {reason[0].strip()}", hint=HINT)

    def leases(self) -> list[tuple[str, str, str]]:
        """List what it has leased: MAC, address, name."""
        try:
            with open(self._path("leases")) as file:
                rows = [line.split() for line in file]
        except OSError:
            return []
        return [(row[1], row[2], row[3]) for row in rows if len(row) >= 4 and ":" in row[1]]

    def _end_all(self) -> None:
        """End it, and what is about to become it: it writes its file last."""
        for _ in range(GENERATIONS):
            for name in os.listdir("/proc"):
                process = self._running(name)
                if process >= 0:
                    _end(process)
                    os.close(process)

    def _running(self, name: str) -> int:
        """Return a pidfd if an entry of /proc is a process that serves this network, else -1."""
        try:
            process = os.pidfd_open(int(name))
        except (ValueError, OSError):
            return -1  # no process, or none any more
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                if self._argument in file.read().split(b"\0"):
                    return process
        except OSError:
            pass
        os.close(process)
        return -1

    def stop(self) -> None:
        """End it, wait for that, and remove its files."""
        self._end_all()
        for name in FILES:
            try:
                os.unlink(f"{self._folder}/{name}")
            except FileNotFoundError:
                pass


HINT: Final = "is another DHCP or DNS server bound to all addresses?"


def _knows(address: str, name: str) -> bool:
    """Ask for a name by DNS (RFC 1035, section 4); say whether there is such a name."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    number = os.urandom(2)
    question = number + b"\x01\0\0\x01\0\0\0\0\0\0" + labels + b"\0\0\x01\0\x01"
    asking = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        asking.settimeout(ANSWER_TIMEOUT)
        asking.connect((address, DNS_PORT))
        asking.send(question)
        answer = asking.recv(512)
    except OSError:  # it does not listen yet, or is busy
        time.sleep(PAUSE)
        return False
    finally:
        asking.close()
    if len(answer) > 7 and answer[:2] == number and answer[6:8] != b"\0\0":
        return True
    time.sleep(PAUSE)
    return False


def _end(process: int) -> None:
    waiting = select.poll()
    waiting.register(process, select.POLLIN)
    for signo in (signal.SIGTERM, signal.SIGKILL):
        try:
            signal.pidfd_send_signal(process, signo)
        except ProcessLookupError:
            return
        if waiting.poll(STOP_TIMEOUT_MS):
            return


def _user(folder: str) -> str:
    """Return whom it runs as: whoever may read the folder, and can do as little else as can be."""
    import pwd

    parts = folder.split("/")
    if not all(os.stat("/".join(parts[:end]) or "/").st_mode & 1 for end in range(len(parts) + 1)):
        return "root"
    for name in ("dnsmasq", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            pass
    return "root"


def settings(bridge: str, prefix: int, network: str, mtu: int) -> list[str]:
    """Return the configuration for a bridge: DNS for all, DHCP for the cards that it is told."""
    mask = _socket.inet_ntoa(((0xFFFFFFFF << (32 - prefix)) & 0xFFFFFFFF).to_bytes(4, "big"))
    return [
        f"interface={bridge}",
        "except-interface=lo",
        "bind-dynamic",
        "local=/kvmpv.invalid/",
        # It does not start where the name leads to a folder that is not there (a resolver that is
        # not running has none), and waits for a file in one that is.
        *([] if os.path.isdir(os.path.dirname(os.path.realpath(RESOLVERS))) else ["no-resolv"]),
        "no-hosts",  # the host's own are in a file of ours, without its loopback addresses
        "domain-needed",
        "dhcp-authoritative",
        "dhcp-rapid-commit",
        "no-ping",
        f"dhcp-range={network},static,{mask},{LEASE}",
        f"dhcp-option=option:mtu,{mtu}",
        "quiet-dhcp",
        "quiet-dhcp6",
        "quiet-ra",
    ]


def settings_ipv6(bridge: str, prefix: str, mtu: int, *, routes: bool) -> list[str]:
    """Return what announces an IPv6 prefix; ``routes`` says whether the host leads further."""
    lifetime = RA_INTERVAL * 3 if routes else 0
    return [
        "enable-ra",
        f"dhcp-range={prefix}::,ra-stateless,64,{LEASE}",
        f"ra-param={bridge},mtu:{mtu},{RA_INTERVAL},{lifetime}",
    ]


def host_names(own_address: str) -> str:
    """Return the names that this host knows, for its guests: none that means loopback."""
    lines = [f"{own_address} {_socket.gethostname()}"]
    try:
        with open(HOSTS, encoding="utf-8", errors="ignore") as file:
            for line in file:
                words = line.partition("#")[0].split()
                if len(words) > 1 and not words[0].startswith(("127.", "::1", "fe00:", "ff0")):
                    lines.append(" ".join(words))
    except OSError:
        pass
    return "".join(f"{line}\n" for line in lines)


def _write(path: str, text: str) -> bool:
    """Replace a file's text; say whether it was another."""
    try:
        with open(path) as file:
            if file.read() == text:
                return False
    except OSError:
        pass
    new = f"{path}.{time.monotonic_ns()}"
    with open(new, "w") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(text)
    os.rename(new, path)
    return True
