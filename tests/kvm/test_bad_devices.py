"""Devices that cannot be cost one line that says how to mend it, and leave nothing behind.

What shows in the options alone is in tests/unit/toolstack/test_devices.py.
"""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvmpv import ofd
from kvmpv.toolstack import disks
from tests.kvm.command import IN_BOX, Command, once
from tests.kvm.refguest import firmware

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 1 << 20

# Arguments ({} is the folder with the files below), what is wrong, how to mend it.
CASES = {
    "missing": ("--disk {}/nowhere", "--disk {}/nowhere: there is no such image",
                "make it: kvmpv disk create {}/nowhere 8G"),
    "folder": ("--disk {}", "--disk {}: is a folder", "folders go to a guest by --share or --root"),
    "pipe": ("--disk {}/pipe", "--disk {}/pipe: is neither a file nor a block device",
             "give an image's path"),
    "odd-size": ("--disk {}/odd", "--disk {}/odd: its 1000 bytes are no multiple of 512",
                 "kvmpv disk resize {}/odd 1024"),
    "odd-blocks": ("--disk {}/512,logical=4096",
                   "--disk {}/512: its 512 bytes are no multiple of 4096",
                   "kvmpv disk resize {}/512 4096"),
    "empty": ("--disk {}/empty", "--disk {}/empty: is empty",
              "give it a size: kvmpv disk resize {}/empty 8G"),
    "twice": ("--disk {}/good --disk {}/link", "--disk {}/link: the same image twice",
              "two disks may share one if both are readonly"),
    "not-as-named": ("--disk {}/raw.qcow2",
                     "--disk {}/raw.qcow2: its content looks like raw, its name like qcow2",
                     "say which it is: format=raw or format=qcow2"),
    "disguised": ("--disk {}/guest.img",
                  "--disk {}/guest.img: its content looks like qcow2, its name like raw",
                  "say which it is: format=qcow2 or format=raw"),
    "broken-qcow2": ("--disk {}/broken.qcow2", "qemu-storage-daemon of --disk {}/broken.qcow2 *",
                     "look at what it was given"),
    "short-qcow2": ("--disk {}/short.qcow2", "--disk {}/short.qcow2: is too short to be qcow2",
                    "it is cut off: take a copy of it"),
    "serial-of-qcow2": ("--disk {}/broken.qcow2,serial=a",
                        "--disk {}/broken.qcow2: serial is not possible with this format",
                        "raw images have it"),
    "no-id": ("--disk id=none-such", "no disk has the id 'none-such'",
              "ls /dev/disk/by-id names those there are"),
    "no-backend": ("--disk vhost-user={}/nowhere",
                   "--disk vhost-user={}/nowhere: nobody serves there: No such file or directory",
                   "start the backend first"),
    "second-fails": ("--disk {}/good --disk {}/nowhere",
                     "--disk {}/nowhere: there is no such image",
                     "make it: kvmpv disk create {}/nowhere 8G"),
    "no-folder": ("--share {}/nowhere", "--share {}/nowhere: there is no such folder",
                  "give the path of a folder"),
    "file-shared": ("--share {}/good", "--share {}/good: is no folder",
                    "give the path of a folder"),
    "no-root-disk": ("--root vda", "--root vda: the domain has no disk", "give it by --disk"),
    "no-root": ("--root {}/nowhere", "--root {}/nowhere: there is no such folder",
                "give the path of a folder"),
    "vsock-there": ("--vsock {}/good", "--vsock {}/good: something is there already",
                    "give another path, or remove it"),
    "no-bridge": ("--net bridge=none-such", "there is no bridge none-such*", "*"),
    "no-tap": ("--net tap=none-such", "there is no tap none-such*", "*"),
    "rng": ("--rng much", "--rng much: cannot be", "on, off, or rate=BYTES for each second"),
}  # fmt: skip
CHOSEN = ["missing"] if IN_BOX else list(CASES)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    for name, size in (("odd", 1000), ("512", 512), ("empty", 0), ("good", SIZE)):
        (folder / name).touch()
        os.truncate(folder / name, size)
    for name in ("raw.qcow2", "guest.img", "broken.qcow2"):
        (folder / name).write_bytes(bytes(4096) if name == "raw.qcow2" else b"QFI\xfb" * 1024)
    (folder / "short.qcow2").write_bytes(b"QFI\xfb\0\0\0\3" + bytes(92))
    (folder / "link").symlink_to(folder / "good")
    os.mkfifo(folder / "pipe")
    return folder


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


def refused(command: Command, *arguments: str, before: tuple[str, ...] = ()) -> str:
    """Run a domain that cannot be; return the line that it cost."""
    kernel = ("--kernel", firmware("refguest"), "-m", "16M", "--cmdline", "test=spin")
    ended = command.run("run", *kernel, *arguments, before=before)
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1), ended.err
    assert command.left(ended.pid) == []
    return ended.err


@pytest.mark.parametrize("case", CHOSEN)
def test_device_that_cannot_be_costs_one_line(case: str, files: Path, command: Command) -> None:
    arguments, what, remedy = (text.replace("{}", str(files)) for text in CASES[case])
    line = refused(command, *arguments.split())
    assert line.startswith(f"kvmpv: {what.partition('*')[0]}")
    assert remedy == "*" or line.endswith(f" ({remedy})\n")
    assert remedy != "*" or line.endswith(")\n")


@once
def test_image_of_another_domain_is_refused(files: Path, command: Command) -> None:
    image = os.open(files / "good", os.O_RDWR)
    try:
        ofd.take(image, fcntl.F_WRLCK, disks.LOCK_BYTE, 1)
        for options in ("", ",readonly", ",snapshot=on"):
            line = refused(command, "--disk", f"{files}/good{options}")
            assert f"--disk {files}/good: is another domain's disk (end it first" in line
    finally:
        os.close(image)


@once
def test_image_that_a_worker_still_writes_to_is_refused(
    files: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = os.open(files / "good", os.O_RDWR)
    try:
        fcntl.flock(image, fcntl.LOCK_EX)
        line = refused(command, "--disk", f"{files}/good")
        assert f"--disk {files}/good: is locked by another process (end it first" in line
    finally:
        os.close(image)


@pytest.fixture
def loop(files: Path) -> Iterator[str]:
    """Give a block device with the image behind it."""
    done = subprocess.run(
        ["losetup", "--find", "--show", files / "good"], capture_output=True, text=True, check=True
    )
    yield done.stdout.strip()
    subprocess.run(["losetup", "--detach", done.stdout.strip()], check=True)


@once
def test_image_behind_a_loop_device_is_refused(files: Path, command: Command, loop: str) -> None:
    line = refused(command, "--disk", f"{files}/good")
    assert f"is in use by the host: the loop device {loop} (end that first" in line


@once
def test_loop_device_over_another_domains_image_is_refused(
    files: Path, command: Command, loop: str
) -> None:
    with (files / "good").open("r+b") as image:
        ofd.take(image.fileno(), fcntl.F_WRLCK, disks.LOCK_BYTE, 1)
        line = refused(command, "--disk", loop)
    assert f"--disk {loop}: the file behind it is another domain's disk (end it first" in line


@once
def test_device_that_is_mounted_is_refused(
    files: Path, command: Command, loop: str, tmp_path: Path
) -> None:
    where = tmp_path / "mounted"
    where.mkdir()
    subprocess.run(["mke2fs", "-q", "-F", loop], check=True)
    subprocess.run(["mount", loop, where], check=True)
    try:
        line = refused(command, "--disk", loop)
        assert f"--disk {loop}: is in use by the host: mounted on {where} (" in line
    finally:
        subprocess.run(["umount", where], check=True)


@once
def test_device_that_is_opened_exclusively_is_refused(command: Command, loop: str) -> None:
    fd = os.open(loop, os.O_RDONLY | os.O_EXCL)
    try:
        line = refused(command, "--disk", loop)
        assert "opened by somebody who wants it alone" in line
    finally:
        os.close(fd)


# Root is an ordinary user to files, but still has all else that a test needs.
NO_OVERRIDE = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")


@once
@pytest.mark.parametrize(
    ("mode", "what"),
    [
        (0o000, "cannot be opened: Permission denied (look at its rights: ls -l)"),
        (0o444, "you may read it, but not write to it (add readonly, or snapshot=on)"),
    ],
)
def test_image_that_may_not_be_opened_is_refused(
    mode: int, what: str, files: Path, command: Command
) -> None:
    (files / "good").chmod(mode)
    line = refused(command, "--disk", f"{files}/good", before=NO_OVERRIDE)
    assert line == f"kvmpv: --disk {files}/good: {what}\n"


@once
@pytest.mark.parametrize(
    ("option", "package"),
    [("--disk={}/a.qcow2", "qemu-storage-daemon"), ("--share={}", "virtiofsd"),
     ("--net=user", "passt")],
)  # fmt: skip
def test_missing_program_is_named_with_its_package(
    option: str, package: str, files: Path, command: Command
) -> None:
    (files / "a.qcow2").write_bytes(b"QFI\xfb\0\0\0\3" + bytes(4096))
    hide = str(Path(__file__).parent / "without_program.py")
    before = ("unshare", "--mount", sys.executable, "-IS", hide, package)
    line = refused(command, option.replace("{}", str(files)), before=before)
    assert line.startswith(f"kvmpv: there is no {package} on this host (apt install ")


@once
def test_path_of_a_dead_socket_is_taken_again(files: Path, command: Command) -> None:
    path = files / "dead"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    kernel = ("--kernel", firmware("first"), "-m", "16M")
    ended = command.run("run", *kernel, "--vsock", str(path), "--rng", "off")
    assert (ended.status, ended.err) == (0, "")
    assert not path.exists()
    assert command.left(ended.pid) == []
