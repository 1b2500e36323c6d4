"""``kvmpv disk`` as a user has it: what it says, its status, and what it leaves."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import struct
import subprocess
import time
from pathlib import Path

import pytest

from kvmpv.images import disk, disk_use
from tests.host.dom0.workers import Worker

KVMPV = str(Path(__file__).parents[3] / "build/bin/kvmpv")
MIB = 1 << 20


def kvmpv(*arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    command = [KVMPV, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, done.stderr
    if status:
        assert done.stderr.count("\n") == 1
    return done


def test_create_resize_and_info_agree(tmp_path: Path) -> None:
    image = tmp_path / "d.img"
    kvmpv("disk", "create", image, "8M")
    kvmpv("disk", "resize", image, "+8M")
    mke2fs = shutil.which("mke2fs", path="/usr/sbin:/sbin:/usr/bin") or "mke2fs"
    subprocess.run([mke2fs, "-q", "-t", "ext4", "-L", "mine", image], check=True)
    found = json.loads(kvmpv("disk", "info", image, "--json").stdout)
    assert (found["format"], found["size"], found["device"]) == ("raw", 16 * MIB, False)
    assert (found["file_system"], found["label"], found["users"]) == ("ext4", "mine", [])
    told = kvmpv("disk", "info", image).stdout
    assert "ext4 (mine)" in told
    assert "16 MiB (16777216 bytes)" in told


def test_who_has_it_locked_is_told(tmp_path: Path) -> None:
    image = tmp_path / "d.img"
    kvmpv("disk", "create", image, "1M")
    with image.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert f"used by      process {os.getpid()} " in kvmpv("disk", "info", image).stdout
        grown = kvmpv("disk", "resize", image, "2M")
        assert "sees the new size when it looks again" in grown.stderr
        refused = kvmpv("disk", "resize", image, "1M", "--shrink", status=2)
        assert "is in use" in refused.stderr
    assert image.stat().st_size == 2 * MIB


def test_domains_worker_sees_a_grown_image(tmp_path: Path) -> None:
    image = tmp_path / "d.img"
    kvmpv("disk", "create", image, "1M")
    worker = Worker(tmp_path, f"blk,path={image}")
    try:
        frontend = worker.frontend()
        frontend.negotiate()
        assert "used by      domain test\n" in kvmpv("disk", "info", image).stdout
        assert "is told of the new size" in kvmpv("disk", "resize", image, "2M").stderr
        until = time.monotonic() + 10
        while int.from_bytes(frontend.get_config(0, 8), "little") != 2 * MIB // 512:
            assert time.monotonic() < until
            time.sleep(0.01)
        frontend.close()
    finally:
        worker.close()


def test_lock_of_an_open_file_description_is_seen(tmp_path: Path) -> None:
    image = tmp_path / "d.img"
    kvmpv("disk", "create", image, "1M")
    with image.open("r+b") as file:
        # F_OFD_SETLK on the whole file, struct flock64 of x86-64.
        fcntl.fcntl(file, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        assert f"process {os.getpid()} " in kvmpv("disk", "info", image).stdout


@pytest.mark.parametrize("format", disk.FORMATS)
def test_image_has_no_name_before_it_is_whole(
    format: str,  # noqa: A002
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    link = os.link

    def see(*arguments: object, **options: object) -> None:
        assert os.listdir(tmp_path) == []
        link(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "link", see)
    disk.create(tmp_path / "d.img", MIB, format=format)
    assert disk_use.inspect(tmp_path / "d.img").size == MIB


def test_qcow2_is_made_grown_and_told(tmp_path: Path) -> None:
    image = tmp_path / "d.qcow2"
    kvmpv("disk", "create", image, "64M", "--format", "qcow2")
    assert os.listdir(tmp_path) == ["d.qcow2"]
    kvmpv("disk", "resize", image, "128M")
    found = json.loads(kvmpv("disk", "info", image, "--json").stdout)
    assert (found["format"], found["size"]) == ("qcow2", 128 * MIB)
    assert found["allocated"] < MIB


@pytest.mark.parametrize("name", ["a:b.qcow2", "-b.qcow2"])
def test_qcow2_may_have_any_name(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kvmpv("disk", "create", "--format", "qcow2", "--", name, "1M")
    kvmpv("disk", "resize", "--", name, "2M")
    assert disk_use.inspect(tmp_path / name).size == 2 * MIB


@pytest.mark.parametrize(
    ("output", "status", "told"),
    [("/dev/full", 2, "kvmpv: No space left on device\n"), ("&0", 1, ""), ("&-", 0, "")],
)
def test_output_that_cannot_be_written_costs_a_line_at_most(
    tmp_path: Path, output: str, status: int, told: str
) -> None:
    image = tmp_path / "d.img"
    disk.create(image, MIB)
    reader, writer = os.pipe()
    os.close(reader)
    command = ["sh", "-c", f'exec "$@" >{output}', "sh", KVMPV, "disk", "info", str(image)]
    with open(writer, "wb") as gone:  # whose reader is
        done = subprocess.run(command, stdin=gone, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (status, told)


CASES = {
    "no-size": (["create", "{}/new", "much"], "'much' is no size"),
    "odd-size": (["create", "{}/new", "1000"], "1000 bytes are no multiple of 512 (1024 are)"),
    "exists": (["create", "{}/d.img", "1M"], "exists already"),
    "no-room": (["create", "{}/new", "1048576T", "--preallocate"], "No space left on device"),
    "missing": (["resize", "{}/gone", "1M"], "No such file or directory"),
    "shrinks": (["resize", "{}/d.img", "512K"], "--shrink cuts off"),
    "info-folder": (["info", "{}"], "is a folder"),
    "info-failing": (["info", "/proc/self/mem"], "cannot read /proc/self/mem: Input/output error"),
    "long-name": (["create", "{}/" + "x" * 300 + "/new", "1M"], "File name too long"),
    "terminal": (["create", "{}/\033[31m/new", "1M"], "there is no folder {}/\\x1b[31m (mkdir"),
    "no-argument": (["create", "{}/new"],
                    "kvmpv: missing argument 'SIZE' (see kvmpv disk create --help)"),
    "no-option": (["create", "{}/new", "-1"],
                  "kvmpv: no such option: -1 (see kvmpv disk create --help)"),
    "no-command": (["creat"], "kvmpv: no such command 'creat'"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_costs_one_line_and_leaves_nothing(tmp_path: Path, case: str) -> None:
    with (tmp_path / "d.img").open("wb") as file:
        file.truncate(MIB)
    arguments, what = CASES[case]
    done = kvmpv("disk", *(word.replace("{}", str(tmp_path)) for word in arguments), status=2)
    assert what.replace("{}", str(tmp_path)) in done.stderr
    assert os.listdir(tmp_path) == ["d.img"]
    assert (tmp_path / "d.img").stat().st_size == MIB
