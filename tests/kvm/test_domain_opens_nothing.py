"""A domain's process opens, starts and imports nothing once it has begun, whatever happens to it.

That is what lets a sandbox be closed around it before the guest runs.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvmpv.toolstack import vmm
from tests.kvm.backends import Disk, DiskGuest
from tests.kvm.command import IN_BOX
from tests.kvm.refguest import Guest

if TYPE_CHECKING:
    from collections.abc import Callable

# What brings a descriptor, a process or a name into being. ioctl is there to see where KVM begins.
WATCHED = (
    "open,openat,openat2,creat,socket,socketpair,connect,bind,accept,memfd_create,pipe2,mkdir,mkdirat"
    ",mknod,rename,renameat2,unlink,unlinkat,execve,execveat,fork,vfork,clone,clone3,ioctl"
)
BEGINNING = "KVM_GET_API_VERSION"

TRACER = """#!/bin/sh
exec strace -D -f -qq -o '{trace}' -e 'trace={watched}' -e signal=none '{python}' "$@"
"""

# kvmpv/vmm/__main__.py, but it tells which modules came after main had begun.
DRIVER = """
import sys
sys.path.insert(0, {root!r})
import os
from kvmpv.vmm import main as module
if any(word.startswith("device=") for word in sys.argv):
    from kvmpv.vmm import devices
before = set(sys.modules)
leave = os._exit
def tell(status):
    with open({late!r}, "w") as file:
        file.write(" ".join(set(sys.modules) - before) + ".")
    leave(status)
os._exit = tell
module.main(sys.argv[1:])
"""


def live_through_everything() -> str:
    """Run a guest that boots twice, brings vCPUs up and crashes; return the crash report."""
    with Guest("vcpus,reboot,crash reason=x", vcpus=2, max_vcpus=4, stats=True) as guest:
        domain = guest.domain
        guest.expect("seed")
        domain.exec_port.sendall(b"r")
        del guest.output[:]
        guest.expect("seed")
        domain.pause()
        assert domain.stats()["boots"] == 2
        assert domain.status()["state"] == "paused"
        domain.resume()
        domain.set_window(80, 25)
        domain.set_vcpus(1)
        domain.sysrq("t")
        domain.attach(1).sendall(b"p")
        end = guest.end()
    assert (end.kind, end.message) == ("crash", "x")
    return Path(end.report).read_text()


def live_with_disks() -> str:
    """Run a guest whose backend dies, whose disks come and go, and that boots twice."""
    disk, late = Disk(0), Disk(1)
    with DiskGuest("disk,reboot,crash reason=x n=64", disk, stats=True) as guest:
        guest.expect("ok disk-begins")
        disk.kill()
        guest.replace(disk)
        guest.expect("seed")
        guest.disks = (disk, late)
        assert guest.send("device-add blk", late.start()) == "ok number=1"
        guest.domain.control("device-remove 1")
        guest.domain.exec_port.sendall(b"r")
        guest.expect("seed", times=2)
        guest.domain.attach(1).sendall(b"p")
        end = guest.end()
        assert guest.failures == []
    assert (end.kind, end.message) == ("crash", "x")
    return Path(end.report).read_text()


LIVES = [live_through_everything, *([] if IN_BOX else [live_with_disks])]


@pytest.fixture(autouse=True)
def crash_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def after_the_beginning(trace: Path) -> list[str]:
    """Return the traced calls that came after the first to KVM, but for those to KVM."""
    lines = trace.read_text().splitlines()
    begins = next(number for number, line in enumerate(lines) if BEGINNING in line)
    return [line for line in lines[begins:] if not re.match(r"\d+ +(ioctl\(|<\.\.\. ioctl)", line)]


@pytest.mark.parametrize("live", LIVES)
def test_nothing_is_opened_or_started_once_kvm_is_in_use(
    live: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace, tracer = tmp_path / "trace", tmp_path / "python"
    tracer.write_text(TRACER.format(trace=trace, watched=WATCHED, python=sys.executable))
    tracer.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(tracer))
        assert "rip=" in live()
    calls = after_the_beginning(trace)
    threads = [line for line in calls if re.search(r"clone3?\(.*CLONE_THREAD|<\.\.\. clone", line)]
    assert threads  # the trace sees what it should
    # A pair of sockets leads nowhere but to whom the VMM hands its other end: a new backend.
    harmless = ("accept", "socketpair(AF_UNIX, ", "<... socketpair")
    others = [line for line in calls if line not in threads]
    assert [line for line in others if not any(word in line for word in harmless)] == []


@pytest.mark.parametrize("live", LIVES)
def test_nothing_is_imported_once_main_has_begun(
    live: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, late = tmp_path / "driver.py", tmp_path / "late"
    root = str(Path(vmm.PROGRAM).parents[2])
    driver.write_text(DRIVER.format(root=root, late=str(late)))
    monkeypatch.setattr(vmm, "PROGRAM", str(driver))
    live()
    assert late.read_text() == "."
