"""The peer: QEMU's microvm, as lean as its options make it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from kvmpv.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Sequence

MACHINE = "microvm,x-option-roms=off,pit=off,pic=off,rtc=off,acpi=off"


def arguments(kernel: str, *, memory: int, cpu: str, serial: bool = False) -> list[str]:
    """Return the command line of a microvm without any device that it does not need."""
    program = shutil.which("qemu-system-x86_64")
    if program is None:
        raise HostError("no qemu-system-x86_64", hint="apt-get install qemu-system-x86")
    machine = f"{MACHINE},isa-serial={'on' if serial else 'off'}"
    return [
        program, "-M", machine, "-accel", "kvm", "-cpu", cpu, "-m", str(memory), "-smp", "1",
        "-nodefaults", "-no-user-config", "-display", "none", "-kernel", kernel,
    ]  # fmt: skip


def version() -> str:
    """Return QEMU's version."""
    said = subprocess.run(
        ["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True
    )
    return said.stdout.split()[3]


class Qmp:
    """A QEMU that waits for its first instruction, with its control socket."""

    def __init__(self, argv: list[str], pass_fds: Sequence[int] = ()) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="kvmpv-bench-")
        path = os.path.join(self._folder.name, "qmp")
        self.process = subprocess.Popen(
            [*argv, "-S", "-no-reboot", "-no-shutdown", "-qmp", f"unix:{path},server=on,wait=off"],
            stdin=subprocess.DEVNULL,
            pass_fds=pass_fds,
        )
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._connect(path)
        except BaseException:
            self.close()
            raise

    def _connect(self, path: str) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                self._socket.connect(path)
                break
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise HostError("QEMU does not start", hint="it has said why") from None
                time.sleep(0.01)
        self._lines = self._socket.makefile("r")
        self._lines.readline()
        self.ask("qmp_capabilities")

    def ask(self, command: str, **values: object) -> object:
        """Run a command and return its answer; events that come before it are dropped."""
        self._socket.sendall(json.dumps({"execute": command, "arguments": values}).encode())
        while True:
            line = self._lines.readline()
            if not line:
                raise HostError(f"QEMU ended at {command}", hint="it has said why")
            answer = json.loads(line)
            if "error" in answer:
                raise HostError(f"QEMU: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def run_to_shutdown(self) -> float:
        """Start the guest; return the seconds until it ends."""
        start = time.monotonic()
        self._socket.sendall(json.dumps({"execute": "cont"}).encode())
        for line in self._lines:
            if json.loads(line).get("event") == "SHUTDOWN":
                return time.monotonic() - start
        raise HostError("QEMU ended before its guest did")

    def stats(self) -> dict[str, int]:
        """Return KVM's statistics, the vCPUs' and the VM's."""
        found: dict[str, int] = {}
        for target in ("vcpu", "vm"):
            answers = self.ask("query-stats", target=target)
            assert isinstance(answers, list)
            for answer in answers:
                for stat in answer["stats"]:
                    if isinstance(stat["value"], int):
                        found[stat["name"]] = found.get(stat["name"], 0) + stat["value"]
        return found

    def close(self) -> None:
        """End QEMU."""
        self.process.kill()
        self.process.wait()
        self._socket.close()
        self._folder.cleanup()


def build_pvh_exit(folder: Path, source: Path) -> str:
    """Build the guest that ends QEMU with its first instruction; return its path."""
    kernel = folder / "pvh_exit"
    subprocess.run(
        ["gcc", "-m32", "-nostdlib", "-static", "-Wl,--build-id=none", "-Wl,-z,noexecstack",
         "-Wl,-T", source.with_suffix(".lds"), "-o", kernel, source],
        check=True,
    )  # fmt: skip
    return str(kernel)
