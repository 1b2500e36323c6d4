"""Build the small guest's root file system: an initramfs of busybox with the agent as /init."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from kvmpv.agent import build as agent_build
from kvmpv.errors import HostError
from kvmpv.images import keyed
from kvmpv.images.cpio import Archive

_FORMAT = "2"
_DIRECTORIES = ("dev", "proc", "sys", "run", "mnt", "root", "var/log", "usr/bin", "usr/sbin")
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/profile": (
        "PS1='\\u@\\h:\\w\\$ '\n"
        "[ -t 0 ] && [ \"$(stty size)\" = '0 0' ] && resize >/dev/null 2>&1\n"
        "alias ll='ls -l'\n"
    ),
    "etc/os-release": 'ID=kvmpv\nNAME="kvmpv small guest"\nPRETTY_NAME="kvmpv small guest"\n',
}


def build() -> str:
    """Return the path of the small guest's initramfs, building it if its inputs are new.

    Raises HostError when busybox or the C compiler is missing.
    """
    parts = [_FORMAT, repr((_DIRECTORIES, _FILES)), *agent_parts(), busybox()]
    return str(keyed.build("rootfs/initrd.cpio", keyed.digest(parts), _make))


def agent() -> Path:
    """Return the path of the compiled agent."""
    return keyed.build("agent/agent", keyed.digest(agent_parts()), agent_build.compile_agent)


def agent_parts() -> list[str | Path]:
    """Return the agent's inputs, to be hashed."""
    version = subprocess.run(
        [agent_build.compiler(), "--version"], capture_output=True, text=True, check=False
    ).stdout
    return [" ".join(agent_build.FLAGS), version, *agent_build.sources()]


def busybox() -> Path:
    """Return the path of a static busybox; raises HostError if there is none."""
    found = shutil.which("busybox")
    if not found or _dynamic(Path(found)):
        raise HostError("no static busybox", hint="install the Debian package busybox-static")
    return Path(found)


def applets(program: Path) -> list[str]:
    """Return the paths, without the leading slash, that busybox wants to be linked to."""
    done = subprocess.run([program, "--list-full"], capture_output=True, text=True, check=True)
    return sorted(done.stdout.split())


def _dynamic(program: Path) -> bool:
    with program.open("rb") as file:
        return b"/ld-linux" in file.read(4096)


def _make(into: Path) -> None:
    archive = Archive()
    for path in _DIRECTORIES:
        archive.directory(path)
    archive.directory("tmp", 0o1777)
    # The kernel opens it for process 1 before anything is mounted.
    archive.device("dev/console", 0o600, 5, 1)
    archive.symlink("etc/resolv.conf", "/run/resolv.conf")
    for path, text in _FILES.items():
        archive.file(path, text.encode())
    archive.file("init", agent().read_bytes(), 0o755)
    program = busybox()
    archive.file("bin/busybox", program.read_bytes(), 0o755)
    for path in applets(program):
        if path != "bin/busybox":
            archive.symlink(path, "/bin/busybox")
    into.write_bytes(archive.data())
