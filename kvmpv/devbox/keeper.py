"""The box's keeper: a process that owns the emulator and lets clients in.

It watches the heartbeat. A box that stops beating is killed, its console kept, and every client
told that the box is lost. The keeper ends with its box, and the box with its last owner.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from typing import Any

from kvmpv.devbox import qemu
from kvmpv.devbox.changes import Watch
from kvmpv.devbox.place import CHECKOUT, Place
from kvmpv.devbox.relay import Client, Relay
from kvmpv.errors import KvmpvError

PING_EVERY = 2.0
REFRESH_EVERY = 1.0
LOST_AFTER = float(os.environ.get("KVMPV_DEVBOX_BEAT", "60"))
BOOT_WITHIN = float(os.environ.get("KVMPV_DEVBOX_BOOT", "180"))
_LINGER = 3.0


class Keeper:
    """Own one box from its start to its end."""

    def __init__(self, place: Place, shares: list[str], stay: bool) -> None:
        self.place = place
        self.shares = shares
        self.stay = stay
        self.started = time.monotonic()
        self.booted = 0.0
        self.heard = self.started
        self._asked = self.started
        self._owners: dict[int, int] = {}  # pid to pidfd
        self._ending = ""
        self._selector = selectors.DefaultSelector()
        self._listener = self._listen()
        ours, theirs = socket.socketpair()
        argv = qemu.command(place, theirs.fileno(), shares)
        self._qemu: subprocess.Popen[bytes] = qemu.start(argv, theirs.fileno())
        theirs.close()
        self.relay = Relay(ours, self.control, self._refresh)
        self._changes = Watch(CHECKOUT)
        self._refreshed = 0.0
        self._watch(os.pidfd_open(self._qemu.pid), self._line_cut)

    def run(self) -> None:
        """Serve until the box ends."""
        try:
            while not self._ending:
                self._turn()
        finally:
            self._close()

    def control(self, client: Client, request: bytes) -> bytes:
        """Answer a client's question to the keeper itself."""
        try:
            asked: dict[str, Any] = json.loads(request)
        except ValueError:
            return b'{"error": "not JSON"}'
        answer: dict[str, Any] = {}
        if asked.get("owner"):
            self._own(int(asked["owner"]))
        if asked.get("stay"):
            self.stay = True
        if asked.get("op") == "down":
            self._ending = "asked to"
        answer["status"] = self._status()
        return json.dumps(answer).encode()

    # ---- The loop -----------------------------------------------------------------------

    def _turn(self) -> None:
        self._register()
        for key, events in self._selector.select(PING_EVERY / 2):
            self._ready(key, events)
        self.relay.sweep()
        self._beat()
        if self.relay.running and time.monotonic() - self._refreshed > REFRESH_EVERY:
            self._refresh()
        if not (self.stay or self._owners or self.relay.clients):
            self._ending = "its owners are gone"

    def _register(self) -> None:
        """Renew what the selector waits for: it depends on what is queued."""
        wanted: dict[int, tuple[int, object]] = {}
        agent = self.relay.agent
        wanted[agent.sock.fileno()] = (1 | (2 if agent.waiting else 0), agent)
        for client in self.relay.clients:
            events = (0 if self.relay.congested else 1) | (2 if client.waiting else 0)
            if events:
                wanted[client.sock.fileno()] = (events, client)
        for key in list(self._selector.get_map().values()):
            if callable(key.data):
                continue
            if wanted.get(key.fd) == (key.events, key.data):
                del wanted[key.fd]
            else:
                self._selector.unregister(key.fd)
        for fd, (events, data) in wanted.items():
            self._selector.register(fd, events, data)

    def _ready(self, key: selectors.SelectorKey, events: int) -> None:
        if callable(key.data):
            key.data()
            return
        peer = key.data
        if events & selectors.EVENT_WRITE:
            peer.flush()
        if not events & selectors.EVENT_READ or self._ending:
            return
        if isinstance(peer, Client):
            self.relay.from_client(peer)
        elif self.relay.from_agent():
            self._heard()
        elif peer.gone:
            self._line_cut()

    def _heard(self) -> None:
        self.heard = time.monotonic()
        if self.relay.up and not self.booted:
            self.booted = self.heard - self.started
            qemu.favour_io(self._qemu.pid)
        if self.relay.failure:
            self._lose(self.relay.failure)

    def _beat(self) -> None:
        now = time.monotonic()
        if now - self._asked >= PING_EVERY:
            self._asked = now
            if self.relay.up:
                self.relay.ping()
        silent = now - self.heard
        if silent > (LOST_AFTER if self.relay.up else BOOT_WITHIN):
            what = "stopped beating" if self.relay.up else "did not come up"
            self._lose(f"it {what}: silent for {silent:.0f} s")

    def _refresh(self) -> None:
        """Tell the box of changes, if there are any: when a command starts, and while it runs."""
        self._refreshed = time.monotonic()
        if self._changes.changed():
            self.relay.refresh(self._changes.alike)

    # ---- Its ends -------------------------------------------------------------------------

    def _lose(self, why: str) -> None:
        if self._ending:
            return
        self._ending = f"lost: {why}"
        self._close_door()  # before a client that hears of it tries again
        self._kill()
        kept = self.place.keep_console()
        self.relay.lost(f"{why}\n{kept}")
        until = time.monotonic() + _LINGER
        while any(c.waiting and not c.gone for c in self.relay.clients) and (
            time.monotonic() < until
        ):
            for client in self.relay.clients:
                client.flush()
            time.sleep(0.02)

    def _line_cut(self) -> None:
        try:
            status = self._qemu.wait(_LINGER)
        except subprocess.TimeoutExpired:
            self._lose("the agent's line is cut")
        else:
            self._lose(f"the emulator has ended with status {status}")

    def _close_door(self) -> None:
        if self._listener.fileno() >= 0:
            self._selector.unregister(self._listener)
            self._listener.close()
            self.place.socket.unlink(missing_ok=True)

    def _kill(self) -> None:
        self._qemu.kill()
        self._qemu.wait()

    def _close(self) -> None:
        self._close_door()
        self._kill()
        for client in self.relay.clients:
            client.sock.close()
        print(f"the box ended: {self._ending}", file=sys.stderr)  # noqa: T201

    # ---- Owners and clients -----------------------------------------------------------------

    def _own(self, pid: int) -> None:
        if pid in self._owners:
            return
        try:
            fd = os.pidfd_open(pid)
        except OSError:
            return
        self._owners[pid] = fd
        self._watch(fd, lambda: self._disown(pid))

    def _disown(self, pid: int) -> None:
        fd = self._owners.pop(pid)
        self._selector.unregister(fd)
        os.close(fd)

    def _watch(self, fd: int, action: object) -> None:
        self._selector.register(fd, selectors.EVENT_READ, action)

    def _listen(self) -> socket.socket:
        os.chdir(self.place.folder)
        self.place.socket.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        mask = os.umask(0o177)
        listener.bind(self.place.socket.name)
        os.umask(mask)
        listener.listen(64)
        listener.setblocking(False)
        self._watch(listener.fileno(), self._accept)
        return listener

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        self.relay.add(sock)

    def _status(self) -> dict[str, Any]:
        return {
            "up": self.relay.up,
            "keeper": os.getpid(),
            "emulator": self._qemu.pid,
            "boot_seconds": round(self.booted, 1),
            "age_seconds": round(time.monotonic() - self.started, 1),
            "silent_seconds": round(time.monotonic() - self.heard, 1),
            "running": self.relay.running,
            "owners": sorted(self._owners),
            "stay": self.stay,
            "shares": self.shares,
            "console": str(self.place.console),
        }


def _detach() -> None:
    """Go on in a child of its own session; the parent ends well once that is listening."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGCHLD})
    if os.fork():
        got = signal.sigwait({signal.SIGUSR1, signal.SIGCHLD})
        os._exit(0 if got == signal.SIGUSR1 else 1)
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1, signal.SIGCHLD})


def main(argv: list[str]) -> None:
    """Run a keeper: NAME STAY [SHARE...]."""
    _detach()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        keeper = Keeper(Place(argv[0]), argv[2:], argv[1] == "stay")
    except KvmpvError as error:
        sys.exit(str(error))
    os.kill(os.getppid(), signal.SIGUSR1)
    keeper.run()


if __name__ == "__main__":
    main(sys.argv[1:])
