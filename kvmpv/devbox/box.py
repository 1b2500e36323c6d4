"""A client's side of the box: have it up, connect, run commands, tell a lost box from the rest."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from kvmpv.agent.client import Connection
from kvmpv.devbox.place import CHECKOUT, Place
from kvmpv.errors import AgentError, HostError, LostBox
from kvmpv.images import keyed

if TYPE_CHECKING:
    from collections.abc import Callable

_ANSWERS_WITHIN = 30.0
_PASSED_ON = ("TERM", "LANG", "TZ", "COLORTERM", "NO_COLOR", "HOME", "XDG_CACHE_HOME", "CI")
_PASSED_ON_PREFIXES = ("KVMPV_", "LC_", "PYTHON", "PYTEST_", "HYPOTHESIS_")
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Box:
    """The box of this checkout, whether it is up or not."""

    def __init__(self, name: str = "") -> None:
        self.place = Place(name)

    def connect(self) -> Connection | None:
        """Return a connection to the box's keeper, None if there is no box."""
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(self.place.short_socket)
        except OSError:
            sock.close()
            return None
        return Connection(sock)

    def up(self, *, owner: int = 0, stay: bool = False, shares: list[str] | None = None) -> bool:
        """Start the box if it is not up, without waiting for its boot; return whether it was.

        Raises HostError when its emulator or kernel cannot be had.
        """
        with keyed.locked(self.place.lock):
            link = self.connect()
            was = link is not None
            if link is None:
                self._start_keeper(stay, shares or [])
                link = self._connected()
        with link:
            self._ask(link, owner=owner, stay=stay)
        return was

    def wait(self) -> dict[str, Any]:
        """Wait until the box has booted; return its status. Raises LostBox."""
        link = self._connected()
        with link:
            self.guarded(lambda: link.capture(["true"]))
            return self._ask(link)

    def status(self) -> dict[str, Any] | None:
        """Return what the keeper tells about the box, None if there is none."""
        link = self.connect()
        if link is None:
            return None
        with link:
            try:
                return self._ask(link)
            except LostBox:
                return None  # it was just about to end

    def down(self) -> bool:
        """End the box; return whether there was one."""
        link = self.connect()
        if link is None:
            return False
        with link:
            keeper = self._ask(link)["keeper"]
            try:
                watched = os.pidfd_open(keeper)
            except OSError:
                return True
            self._ask(link, op="down")
        # It ends after its emulator.
        select.select([watched], [], [], _ANSWERS_WITHIN)
        os.close(watched)
        return True

    def capture(self, argv: list[str] | str, **more: Any) -> tuple[int, bytes, bytes]:
        """Run a command in the box that is up; return (status, stdout, stderr)."""
        with self._connected() as link:
            environment = more.pop("env", {})
            found: tuple[int, bytes, bytes] = self.guarded(
                lambda: link.capture(argv, env=guest_environment() | environment,
                                     cwd=guest_folder(), **more)
            )  # fmt: skip
            return found

    def guarded(self, action: Callable[[], Any]) -> Any:
        """Run ``action``, and raise LostBox in place of the agent's going away."""
        try:
            return action()
        except AgentError as error:
            why, _, console = error.message.partition("\n")
            raise LostBox(f"lost box: {why}", console=console or str(self.place.console)) from None

    def _connected(self) -> Connection:
        link = self.connect()
        if link is None:
            raise HostError("the dev box is not up", hint="scripts/devbox up")
        return link

    def _ask(self, link: Connection, **request: Any) -> dict[str, Any]:
        answer = self.guarded(lambda: link.relay(json.dumps(request).encode(), _ANSWERS_WITHIN))
        status: dict[str, Any] = json.loads(answer)["status"]
        return status

    def _start_keeper(self, stay: bool, shares: list[str]) -> None:
        """Start the keeper, which goes on by itself once it listens."""
        words = [self.place.name, "stay" if stay else "leave", *shares]
        with self.place.log.open("wb") as log:
            done = subprocess.run(
                [sys.executable, "-m", "kvmpv.devbox.keeper", *words],
                cwd=CHECKOUT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=False,
            )
        if done.returncode:
            lines = self.place.log.read_text(errors="replace").splitlines() or ["it said nothing"]
            raise HostError(f"the dev box does not start: {lines[-1]}", hint=str(self.place.log))


def guest_folder() -> str:
    """Return the folder that a command starts in: this one if the box sees it live."""
    here = os.getcwd()
    inside = here == str(CHECKOUT) or here.startswith(f"{CHECKOUT}/")
    return here if inside else str(CHECKOUT)


def guest_environment() -> dict[str, str]:
    """Return what of this process's environment a command in the box gets."""
    passed = {
        key: value
        for key, value in os.environ.items()
        if key in _PASSED_ON or key.startswith(_PASSED_ON_PREFIXES)
    }
    environment = (CHECKOUT / "build/venv").resolve()
    path = f"{CHECKOUT}/build/bin:{environment}/bin:{_SYSTEM_PATH}"
    return passed | {"PATH": path, "KVMPV_BOX": "1"}
