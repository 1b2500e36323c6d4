"""Run a command where /dev/kvm is not as it should be: ``absent``, ``forbidden``, or ``other``.

    python without_kvm.py KIND EMPTY-FOLDER COMMAND...

The command gets mounts of its own, so nobody else sees a difference.
"""

from __future__ import annotations

import ctypes
import os
import sys

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 1 << 18
PR_CAPBSET_DROP = 24
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> None:
    if getattr(libc, name)(*arguments):
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


def bind(source: str, target: str) -> None:
    call("mount", source.encode(), target.encode(), None, MS_BIND | MS_REC, None)


def own_mounts() -> None:
    user = os.getuid()
    call("unshare", CLONE_NEWNS | (CLONE_NEWUSER if user else 0))
    if user:
        write("/proc/self/uid_map", f"0 {user} 1")
    call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def absent(folder: str) -> None:
    write(f"{folder}/null", "")
    bind("/dev/null", f"{folder}/null")
    bind(folder, "/dev")


def forbidden(folder: str) -> None:
    write(f"{folder}/kvm", "")
    os.chmod(f"{folder}/kvm", 0)
    bind(f"{folder}/kvm", "/dev/kvm")
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):  # root alone would pass
        call("prctl", PR_CAPBSET_DROP, capability, 0, 0, 0)


def other(_folder: str) -> None:
    bind("/dev/null", "/dev/kvm")


if __name__ == "__main__":
    kind, folder, *command = sys.argv[1:]
    own_mounts()
    {"absent": absent, "forbidden": forbidden, "other": other}[kind](folder)
    os.execv(command[0], command)
