"""A guest's shell on a stream: its terminal on kvmpv, its serial port on QEMU."""

from __future__ import annotations

import re
import select
import time
from typing import TYPE_CHECKING

from kvmpv.errors import HostError
from scripts.tools.bench import guest_tools

if TYPE_CHECKING:
    from _socket import socket  # what a domain's terminal is

# What the guest's init runs. Not an interactive one: its editor of lines loses what comes early.
COMMAND = "stty raw -echo; (echo =0=; exec sh -s 2>&1) | cat"
PATIENCE = 90.0  # seconds: guests are slow in the dev box
_ANSWER = re.compile(rb"=(\d+)=\r?\n")
_MOUNT_TOOLS = (
    "for d in /sys/block/vd*; do "
    f"[ $(cat $d/serial) = {guest_tools.SERIAL} ] && "
    f"mount -t ext4 -o ro /dev/${{d##*/}} {guest_tools.MOUNT} && break; done"
)


class Shell:
    """Commands for one guest, and a load that it is under while it is measured."""

    def __init__(self, stream: socket, name: str) -> None:
        """Wait until it is there, and mount the disk with the tools."""
        self._stream = stream
        self._name = name
        self._answer("its start")
        self.run(_MOUNT_TOOLS)

    def run(self, command: str) -> str:
        """Run a command and return what it said; raise HostError when it fails."""
        self._stream.sendall(f"{command}\necho =$?=\n".encode())
        text, status = self._answer(command)
        if status:
            raise HostError(f"{self._name}: {command}: {text.strip()}", hint="run it again")
        return text

    def load(self, command: str) -> None:
        """Start what keeps the guest busy, and stop it at once."""
        self.run(f"{command} </dev/null >/tmp/load 2>&1 &")
        self.rest()

    def work(self) -> None:
        """Let the load go on; raise HostError when it has ended."""
        self.run("kill -CONT $!")

    def rest(self) -> None:
        """Stop the load."""
        self.run("kill -STOP $!")

    def unload(self) -> str:
        """End the load; return what it said."""
        return self.run("kill -KILL $!; wait $!; cat /tmp/load")

    def _answer(self, command: str) -> tuple[str, int]:
        """Read up to the command's end; return what it said, and its status."""
        said = b""
        deadline = time.monotonic() + PATIENCE
        while (found := _ANSWER.search(said)) is None:
            left = deadline - time.monotonic()
            ready = left > 0 and select.select([self._stream], [], [], left)[0]
            piece = self._stream.recv(65536) if ready else b""
            if not piece:
                tail = said.decode(errors="replace")[-500:]
                raise HostError(f"{self._name}: no answer to {command}: {tail}")
            said += piece
        return said[: found.start()].decode(errors="replace"), int(found[1])
