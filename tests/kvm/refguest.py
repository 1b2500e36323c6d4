"""Drive the reference guest of firmware/ through the real VMM."""

from __future__ import annotations

import re
import select
import subprocess
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Self

import kvmpv

if TYPE_CHECKING:
    import _socket
    from types import TracebackType

    from kvmpv import End

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0  # seconds; the dev box is slow
MEMORY = "16M"


@cache
def firmware(name: str) -> str:
    """Return the path of a guest, built from what the sources are now."""
    subprocess.run(["make", "-s", "-C", str(ROOT / "firmware")], check=True)
    return str(ROOT / "build/firmware" / name)


class Guest:
    """One run of the reference guest: what it printed, and what came from its exec port.

    ``test`` is the command line behind ``test=``; the keywords are kvmpv.Domain's.
    """

    def __init__(self, test: str, *, kernel: str = "refguest", **options: object) -> None:
        options = {"memory": MEMORY, **options}
        path = firmware(kernel)
        self.domain = kvmpv.Domain(kernel=path, cmdline=f"test={test}", **options)
        self.output = bytearray()
        self.exec_output = bytearray()
        self._streams: dict[_socket.socket, bytearray] = {}

    def __enter__(self) -> Self:
        self.domain.start()
        self._streams = {
            self.domain.terminal: self.output,
            self.domain.exec_port: self.exec_output,
        }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.domain.close()

    @property
    def text(self) -> str:
        return self.output.decode("utf-8", "replace").replace("\r", "")

    @property
    def failures(self) -> list[str]:
        return [line for line in self.text.splitlines() if line.startswith("not ok")]

    @property
    def passed(self) -> set[str]:
        return set(re.findall(r"^ok (\S+)$", self.text, re.MULTILINE))

    def expect(self, text: str, times: int = 1) -> str:
        """Wait until the guest has printed something so often; return all that it printed."""
        deadline = time.monotonic() + PATIENCE
        while self.text.count(text) < times:
            assert self._pump(deadline), f"the guest ended before {text!r}:\n{self.text[-2000:]}"
        return self.text

    def expect_exec(self, length: int) -> bytes:
        """Wait until that many bytes have come from the exec port; return all that came."""
        deadline = time.monotonic() + PATIENCE
        while len(self.exec_output) < length:
            assert self._pump(deadline), f"only {len(self.exec_output)} bytes came"
        return bytes(self.exec_output)

    def end(self) -> End:
        """Wait for the end; a guest that goes on for too long fails the test."""
        deadline = time.monotonic() + PATIENCE
        while self._pump(deadline):
            pass
        end = self.domain.wait(timeout=PATIENCE)
        assert end is not None
        return end

    def close_exec(self) -> None:
        """Close the host's end of the exec port."""
        del self._streams[self.domain.exec_port]
        self.domain.exec_port.close()

    def _threads(self) -> str:
        """Say what each thread of the VMM is doing, for whoever has to find out why it hangs."""
        lines = []
        for task in sorted(Path(f"/proc/{self.domain.pid}/task").iterdir()):
            state, *_, user, system = (task / "stat").read_text().rpartition(")")[2].split()[:13]
            where = (task / "wchan").read_text()
            call = (task / "syscall").read_text().split()[0]
            lines.append(f"{task.name}: {state} {where}, call {call}, ticks {user}+{system}")
        return "\n".join(lines)

    def _pump(self, deadline: float) -> bool:
        """Take what has come; return whether more can come."""
        ready, _, _ = select.select(list(self._streams), [], [], deadline - time.monotonic())
        assert ready, f"nothing came for too long:\n{self.text[-2000:]}\n{self._threads()}"
        for stream in ready:
            try:
                data = stream.recv(1 << 16)
            except ConnectionResetError:  # it ended with input that it had not read
                data = b""
            self._streams[stream] += data
            if not data:
                del self._streams[stream]
        return bool(self._streams)


def run(test: str, *, kernel: str = "refguest", **options: object) -> tuple[End, Guest]:
    """Run the guest to its end."""
    with Guest(test, kernel=kernel, **options) as guest:
        return guest.end(), guest
