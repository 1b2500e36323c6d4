"""As much of QEMU's monitor protocol as a storage daemon is asked: docs/interop/qmp-spec.txt."""

from __future__ import annotations

import select
import time

from kvmpv.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from typing import Final

PATIENCE: Final = 10.0  # seconds


class Monitor:
    """A connection to a monitor; commands wait for their answers."""

    __slots__ = ("_received", "_socket", "version")

    def __init__(self, socket: _socket.socket) -> None:
        self._socket = socket
        self._received = b""
        self.version = (0, 0)  # of QEMU; known once it has greeted

    def greet(self, timeout: float) -> bool:
        """Wait until the daemon is ready; return False if it ends before that."""
        greeting = self._receive(time.monotonic() + timeout)
        if greeting is None:
            return False
        self.version = _version(greeting)
        self.execute("qmp_capabilities")
        return True

    def execute(self, command: str, **arguments: object) -> object:
        """Return what a command answers; raise ``HostError`` where it fails."""
        import json

        request = {"execute": command, "arguments": arguments}
        deadline = time.monotonic() + PATIENCE
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError:
            raise HostError(
                "qemu-storage-daemon is gone", hint="it is being started again"
            ) from None
        while True:
            answer = self._receive(deadline)
            if answer is None:
                raise HostError(f"qemu-storage-daemon does not answer to {command}", hint="see top")
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                text = answer["error"]
                reason = text.get("desc", "") if isinstance(text, dict) else text
                raise HostError(f"qemu-storage-daemon: {reason}", hint="look at the image")

    def _receive(self, deadline: float) -> dict[str, object] | None:
        import json

        while b"\n" not in self._received:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._socket], [], [], max(left, 0))
            try:
                data = self._socket.recv(65536) if ready else b""
            except OSError:
                data = b""
            if not data:
                return None
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        found = json.loads(line)
        return found if isinstance(found, dict) else {}

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


def _version(greeting: object) -> tuple[int, int]:
    """Return major and minor version of who greeted; zeroes where they are not told."""
    found: object = greeting
    for key in ("QMP", "version", "qemu"):
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, dict):
        return 0, 0
    return int(found.get("major", 0)), int(found.get("minor", 0))
