"""The host's disks: found by their ids, their sizes, and whether somebody uses them already."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from kvmpv.errors import BadInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

BY_ID: Final = "/dev/disk/by-id"
SYS_BLOCK: Final = "/sys/dev/block"
SYS_LOOPS: Final = "/sys/block"
MOUNTS: Final = "/proc/self/mountinfo"
BLKGETSIZE64: Final = 0x80081272  # linux/fs.h


def by_id(name: str) -> str:
    """Return the path of the block device with an id.

    The id is a name in /dev/disk/by-id, a serial number or a WWN. Raises BadInput where there is
    none such, or several.
    """
    path = f"{BY_ID}/{name}"
    if "/" not in name and os.path.islink(path):
        return os.path.realpath(path)
    found = sorted(_known_as(name))
    if len(found) == 1:
        return found[0]
    if found:
        raise BadInput(
            f"several disks have the id {name!r}: {', '.join(found)}", hint="give a path"
        )
    raise BadInput(f"no disk has the id {name!r}", hint=f"ls {BY_ID} names those there are")


def _known_as(name: str) -> set[str]:
    import pyudev  # type: ignore[import-untyped]

    keys = ("ID_SERIAL", "ID_SERIAL_SHORT", "ID_WWN", "ID_WWN_WITH_EXTENSION")
    return {
        device.device_node
        for device in pyudev.Context().list_devices(subsystem="block", DEVTYPE="disk")
        if device.device_node
        and (
            any(device.properties.get(key) == name for key in keys)
            or f"{BY_ID}/{name}" in device.device_links
        )
    }


def size_of(fd: int) -> int:
    """Return the bytes that a block device or a file has."""
    try:
        return int(struct.unpack("Q", fcntl.ioctl(fd, BLKGETSIZE64, bytes(8)))[0])
    except OSError:
        return os.fstat(fd).st_size


def use_of_device(path: str) -> str:
    """Say what a block device is used for, in a few words; nothing where it is free."""
    number = os.stat(path).st_rdev
    for one in (number, *_partitions(number)):
        if where := _mounted_on(one):
            return f"mounted on {where}"
        if holders := _holders(one):
            return f"held by {', '.join(holders)}"
        if _is_swap(one):
            return "used as swap"
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return "opened by somebody who wants it alone"
    return use_of_file(path)  # a loop device claims nothing


def use_of_file(path: str) -> str:
    """Say what loop device of the host has a file (or a device) behind it; nothing where none."""
    loops = loops_over(path)
    if not loops:
        return ""
    where = _mounted_on(_number(f"{SYS_LOOPS}/{loops[0]}/dev"))
    return f"the loop device /dev/{loops[0]}" + (f", mounted on {where}" if where else "")


def loops_over(path: str) -> list[str]:
    """Return the names of the host's loop devices that have a file (or a device) behind them."""
    try:
        names = [name for name in os.listdir(SYS_LOOPS) if name.startswith("loop")]
    except OSError:
        return []
    real = os.path.realpath(path)
    behind = {name: _read(f"{SYS_LOOPS}/{name}/loop/backing_file") for name in sorted(names)}
    return [
        name for name, file in behind.items() if file and (file == real or _is_same(file, real))
    ]


def file_behind(number: int) -> str:
    """Return the path of the file behind a loop device or its partition; nothing for others."""
    folder = _folder(number)
    return _read(f"{folder}/loop/backing_file") or _read(f"{folder}/../loop/backing_file")


def _is_same(path: str, other: str) -> bool:
    """Say whether two paths lead to one file, as hard links and bind mounts do."""
    try:
        return os.path.samefile(path, other)
    except OSError:
        return False


def _partitions(number: int) -> list[int]:
    folder = _folder(number)
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    found = (f"{folder}/{name}" for name in names)
    return [_number(f"{one}/dev") for one in found if os.path.exists(f"{one}/partition")]


def _mounted_on(number: int) -> str:
    mark = f"{os.major(number)}:{os.minor(number)}"
    for line in _read(MOUNTS).splitlines():
        words = line.split(" ")
        if len(words) > 4 and words[2] == mark:  # proc(5): mount ID, parent ID, major:minor
            return words[4]
    return ""


def _holders(number: int) -> list[str]:
    try:
        return sorted(os.listdir(f"{_folder(number)}/holders"))
    except OSError:
        return []


def _is_swap(number: int) -> bool:
    for line in _read("/proc/swaps").splitlines()[1:]:
        try:
            if os.stat(line.split()[0]).st_rdev == number:
                return True
        except OSError:
            pass
    return False


def _folder(number: int) -> str:
    return f"{SYS_BLOCK}/{os.major(number)}:{os.minor(number)}"


def _number(path: str) -> int:
    major, _, minor = _read(path).partition(":")
    return os.makedev(int(major), int(minor)) if minor else 0


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read().rstrip("\n")
    except OSError:
        return ""
