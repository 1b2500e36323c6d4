"""A domain's backends: started with it, started again when they die, gone when it is.

The reference guest is the driver; it says ``not ok`` when a request fails or reads back wrongly.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import kvmpv
from kvmpv.toolstack import backend, processes, servers
from tests.kvm.command import IN_BOX, KVMPV, Command, once
from tests.kvm.refguest import PATIENCE, Guest, firmware
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 1 << 20
MARK = 0x6B766D7076000000  # the guest writes it, plus the sector's number, at the start of each


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    made = Command(tmp_path)
    for name in ("KVMPV_RUN_DIR", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, made.environment[name])
    return made


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.touch()
    os.truncate(path, SIZE)
    return path


@pytest.fixture
def qcow2(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, str(SIZE)], check=True)
    return path


@pytest.fixture
def nothing_left(command: Command) -> Iterator[None]:
    """See that processes, sockets and files of the domains are gone afterwards."""
    before = set(children())
    yield
    assert command.left(os.getpid()) == []
    assert set(children()) <= before


def children() -> list[int]:
    """Return the processes that this one has started, and theirs."""
    found: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        pid = waiting.pop()
        try:
            text = "".join(
                Path(task, "children").read_text() for task in Path(f"/proc/{pid}/task").iterdir()
            )
        except OSError:
            continue
        waiting += map(int, text.split())
        found += map(int, text.split())
    return found


def pid_of(domain: kvmpv.Domain, number: int = 0) -> int:
    return int(domain.devices()[number]["pid"])


def kill_and_wait(domain: kvmpv.Domain, number: int = 0) -> None:
    """Kill a device's backend as nobody can expect, and wait for the next one."""
    before = int(domain.devices()[number]["restarts"])
    os.kill(pid_of(domain, number), signal.SIGKILL)
    until(lambda: int(domain.devices()[number]["restarts"]) > before)


def sector(path: Path, number: int) -> int:
    with open(path, "rb") as file:
        file.seek(512 * number)
        return int.from_bytes(file.read(8), "little")


# ---- disks


@pytest.mark.usefixtures("nothing_left")
def test_image_is_written_and_read_back(image: Path) -> None:
    with Guest("disk n=32 depth=16 size=4096", disks=[str(image)], stats=True) as guest:
        end = guest.end()
    assert guest.failures == []
    assert sector(image, 9) == MARK + 9
    assert end.stats["device0_writes"] == 32
    assert end.stats["backend_restarts"] == 0


@once
@pytest.mark.usefixtures("nothing_left")
def test_qcow2_image_just_works(qcow2: Path) -> None:
    with Guest("disk n=32 depth=16 size=4096", disks=[str(qcow2)], rng="off") as guest:
        [device] = guest.domain.devices()
        assert (device["backend"], device["format"]) == ("qemu-storage-daemon", "qcow2")
        guest.end()
    assert guest.failures == []
    raw = qcow2.with_suffix(".raw")
    subprocess.run(["qemu-img", "convert", "-O", "raw", qcow2, raw], check=True)
    assert sector(raw, 9) == MARK + 9


@once
@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("suffix", ["img", "qcow2"])
def test_throw_away_disk_leaves_its_image_alone(suffix: str, image: Path, qcow2: Path) -> None:
    path = {"img": image, "qcow2": qcow2}[suffix]
    before = path.read_bytes()
    with Guest("disk n=2000 depth=8", disks=[f"{path},snapshot=on"]) as guest:
        if suffix == "img":
            guest.expect("disk-begins")
            kill_and_wait(guest.domain)  # what was written is there for the next one
        guest.end()
    assert guest.failures == []
    assert path.read_bytes() == before


@once
@pytest.mark.usefixtures("nothing_left")
def test_what_a_throw_away_disk_is_written_to_never_has_a_name(
    qcow2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    spawn = processes.spawn

    def see(argv: list[str], *arguments: Any, **options: Any) -> int:
        started.extend(argv)
        return spawn(argv, *arguments, **options)

    monkeypatch.setattr(processes, "spawn", see)
    with Guest("disk n=8", disks=[f"{qcow2},snapshot=on"]) as guest:
        guest.end()
    assert guest.failures == []
    assert any("qemu-img" in word for word in started)
    assert not any(word.startswith(backend.OVERLAYS) for word in started)


@once
@pytest.mark.usefixtures("nothing_left")
def test_two_domains_share_a_readonly_image_and_not_a_writable_one(image: Path) -> None:
    with (
        Guest("spin", disks=[f"{image},readonly"]),
        Guest("spin", disks=[f"{image},readonly"]),
        pytest.raises(kvmpv.BadInput, match="is another domain's disk"),
    ):
        kvmpv.Domain(kernel=firmware("refguest"), disks=[str(image)]).start()
    with Guest("disk n=8", disks=[str(image)]) as guest:  # at once: the lock goes with the domain
        guest.end()
    assert guest.failures == []


@pytest.mark.usefixtures("nothing_left")
def test_worker_that_is_killed_again_and_again_costs_the_guest_nothing(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "DELAYS", (0.0,))
    times = 2 if IN_BOX else 20
    with Guest("disk n=1500 depth=16", disks=[str(image)], stats=True) as guest:
        guest.expect("disk-begins")
        for _ in range(times):
            kill_and_wait(guest.domain)
        end = guest.end()
    assert guest.failures == []
    assert end.stats["backend_restarts"] == times


@once
@pytest.mark.usefixtures("nothing_left")
def test_worker_that_keeps_dying_is_started_later_and_later() -> None:
    with Guest("spin", rng="on") as guest:
        moments = [time.monotonic()]
        for _ in range(5):
            kill_and_wait(guest.domain)
            moments.append(time.monotonic())
        os.kill(pid_of(guest.domain), signal.SIGKILL)
        # Whoever takes a number that is no process's for one may kill his own.
        until(lambda: "pid" not in guest.domain.devices()[0])
    assert moments[-1] - moments[-2] > backend.DELAYS[4]
    assert moments[-1] - moments[0] < sum(backend.DELAYS)


@once
@pytest.mark.usefixtures("nothing_left")
def test_stopped_worker_is_waited_for_and_a_killed_one_not(image: Path) -> None:
    with Guest("disk n=200 depth=16", disks=[str(image)]) as guest:
        guest.expect("disk-begins")
        os.kill(pid_of(guest.domain), signal.SIGSTOP)
        time.sleep(0.1)
        kill_and_wait(guest.domain)
        guest.end()
    assert guest.failures == []


@once
@pytest.mark.usefixtures("nothing_left")
def test_killed_storage_daemon_that_owed_nothing_is_replaced(qcow2: Path) -> None:
    with Guest("watchdisk", disks=[str(qcow2)], rng="off") as guest:
        guest.expect("watching")
        kill_and_wait(guest.domain)
        until(lambda: guest.domain.control("devices")["0.backend"] == "connected")
        assert "status 4f" not in guest.text


@once
@pytest.mark.usefixtures("nothing_left")
def test_device_that_its_guest_breaks_is_served_again_and_others_go_on(image: Path) -> None:
    with Guest("badrings", disks=[str(image), "null:1M"]) as guest:
        guest.end()
    assert guest.failures == []
    assert guest.text.count("status 4f") == guest.text.count("broken ") > 5


@once
@pytest.mark.usefixtures("nothing_left")
def test_isolated_disks_have_workers_of_their_own(image: Path) -> None:
    disks = ["null:1M,isolate", str(image), "null:1M"]
    with Guest("spin", disks=disks) as guest:
        pids = [device["pid"] for device in guest.domain.devices()]
        assert pids[1] == pids[2] == pids[3] != pids[0]
        kill_and_wait(guest.domain, 0)
        assert [device["restarts"] for device in guest.domain.devices()] == ["1", "0", "0", "0"]


# ---- while it runs


@once
@pytest.mark.usefixtures("nothing_left")
def test_disk_comes_and_goes_while_the_guest_runs(image: Path) -> None:
    with Guest("requests,watchdisk,requests,halt devices=1", rng="on") as guest:
        guest.expect("ready")
        [random] = guest.domain.devices()
        number = guest.domain.attach_disk(str(image))
        guest.expect("change status f")
        _, device = guest.domain.devices()
        assert (device["number"], device["path"]) == (str(number), str(image))
        guest.domain.detach(number)
        guest.expect("removed 1")
        assert guest.domain.devices() == [random]
        with kvmpv.Domain(kernel=firmware("first"), memory="16M", disks=[str(image)]) as other:
            assert other.wait_for_end().kind == "poweroff"  # it is free for others


@once
@pytest.mark.usefixtures("nothing_left")
def test_disk_that_cannot_be_attached_leaves_the_domain_as_it_was(image: Path) -> None:
    with Guest("spin", disks=[str(image)]) as guest:
        before = guest.domain.devices()
        for spec, what in (
            (str(image), "the same image twice"),
            (f"{image}.none", "there is no such image"),
            ("null:5", "no size of a disk"),
        ):
            with pytest.raises(kvmpv.BadInput, match=what):
                guest.domain.attach_disk(spec)
        with pytest.raises(kvmpv.BadInput, match="has no device 7"):
            guest.domain.detach(7)
        assert guest.domain.devices() == before


@once
@pytest.mark.usefixtures("nothing_left")
def test_disk_grows_while_the_guest_runs(image: Path) -> None:
    with Guest("watchdisk until=6144", disks=[str(image)]) as guest:
        guest.expect("watching")
        guest.domain.resize_disk(0, 6144 * 512)
        guest.expect("sectors 6144")
        guest.end()
    assert guest.failures == []


@once
@pytest.mark.usefixtures("nothing_left")
def test_disk_that_another_has_grown_is_not_cut_off(image: Path) -> None:
    with Guest("spin", disks=[f"{image},logical=4096"]) as guest:
        os.truncate(image, 4 * SIZE)
        for size in (2 * SIZE, 4 * SIZE + 512, 1 << 70):
            with pytest.raises(kvmpv.BadInput, match="less than it has, no multiple of 4096"):
                guest.domain.resize_disk(0, size)
        with pytest.raises(kvmpv.BadInput, match="cannot grow: File too large"):
            guest.domain.resize_disk(0, 1 << 62)
        guest.domain.resize_disk(0)
        assert guest.domain.devices()[0]["size"] == str(4 * SIZE)
    assert image.stat().st_size == 4 * SIZE


@once
@pytest.mark.usefixtures("nothing_left")
def test_storage_daemon_that_hangs_is_given_up(
    qcow2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hangs").write_text("#!/bin/sh\ntrap '' TERM\nexec sleep 600\n")
    (tmp_path / "hangs").chmod(0o755)
    monkeypatch.setattr(processes, "find", lambda *_: str(tmp_path / "hangs"))
    monkeypatch.setattr(servers, "READY_PATIENCE", 0.1)
    monkeypatch.setattr(backend, "END_PATIENCE", 0.1)
    with pytest.raises(kvmpv.HostError, match=r"qemu-storage-daemon of .* does not get ready"):
        kvmpv.Domain(kernel=firmware("refguest"), memory="16M", disks=[str(qcow2)]).start()


@once
@pytest.mark.usefixtures("nothing_left")
def test_disk_of_an_old_storage_daemon_keeps_its_size(qcow2: Path) -> None:
    before = qcow2.read_bytes()
    why = pytest.raises(kvmpv.BadInput, match=r"7\..* cannot tell a guest of another size")
    with Guest("spin", disks=[str(qcow2)]) as guest, why:
        guest.domain.resize_disk(0, 2 * SIZE)
    assert qcow2.read_bytes() == before


@once
@pytest.mark.usefixtures("nothing_left")
def test_limits_are_set_while_the_guest_runs(image: Path) -> None:
    with Guest("disk n=60 depth=1", disks=[f"{image},iops=20,iops_burst=20"]) as guest:
        guest.expect("disk-begins")
        guest.domain.set_limits(0, iops=0, iops_burst=0)
        with pytest.raises(kvmpv.BadInput, match="there is no limit 'pps'"):
            guest.domain.set_limits(0, pps=1)
        with pytest.raises(kvmpv.BadInput, match="iops=4611686018427387905 cannot be"):
            guest.domain.set_limits(0, iops=(1 << 62) + 1)
        started = time.monotonic()
        guest.end()
        assert time.monotonic() - started < 5.0  # 120 requests at 20 a second
    assert guest.failures == []


@once
@pytest.mark.usefixtures("nothing_left")
def test_limits_of_a_group_are_those_of_its_last_change_for_the_next_worker_too() -> None:
    disks = ["null:1M,group=g,iops=20", "null:1M,group=g,iops=20"]
    with Guest("disk n=60 depth=1", disks=disks) as guest:
        guest.expect("disk-begins")
        guest.domain.set_limits(1, iops=0)
        guest.domain.set_limits(0, bps=1 << 40)
        os.kill(int(guest.domain.devices()[0]["pid"]), signal.SIGKILL)
        started = time.monotonic()
        guest.end()
        assert time.monotonic() - started < 5.0


@once
def test_domain_that_is_gone_takes_no_device(image: Path, nothing_left: None) -> None:
    domain = kvmpv.Domain(kernel=firmware("first"), memory="16M", rng="on")
    for _ in range(2):
        with pytest.raises(kvmpv.KvmpvError, match="is gone"):
            domain.attach_disk(str(image))
        with domain:
            domain.wait_for_end()
    assert domain.devices() == []


# ---- ends


def start(command: Command, *arguments: str) -> subprocess.Popen[str]:
    """Start the command with a guest that does nothing; wait until that runs."""
    kernel = ("--kernel", firmware("refguest"), "-m", "16M", "--cmdline", "test=spin")
    child = command.start("run", *kernel, *arguments)
    assert child.stdout is not None
    assert "spinning\n" in iter(child.stdout.readline, "")
    return child


def below(pid: int) -> list[int]:
    """Return the processes that a process has started, by its threads."""
    tasks = Path(f"/proc/{pid}/task")
    return [int(one) for task in tasks.iterdir() for one in (task / "children").read_text().split()]


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@once
def test_shared_folder_may_have_any_name(command: Command, tmp_path: Path) -> None:
    shared = tmp_path / "a,b\\1,\\"
    shared.mkdir()
    with start(command, "--share", str(shared).replace(",", ",,")) as child:
        [server] = [pid for pid in below(child.pid) if "virtiofsd" in command_line(pid)]
        assert alive([server])
        child.terminate()
        child.wait(PATIENCE)
    assert child.returncode == 130


@once
def test_killed_owner_leaves_no_backend(
    command: Command, image: Path, qcow2: Path, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    devices = ("--disk", str(image), "--disk", str(qcow2), "--share", f"{shared},ro")
    with start(command, *devices) as child:
        processes = below(child.pid)
        assert len(processes) == 5  # sweeper, VMM, worker, storage daemon, file server
        child.kill()
    until(lambda: alive(processes) == [])
    assert command.nothing_is_left(child.pid)


@once
def test_interrupted_owner_leaves_nothing(command: Command, image: Path, qcow2: Path) -> None:
    with start(command, "--disk", str(image), "--disk", str(qcow2)) as child:
        processes = below(child.pid)
        child.terminate()
        child.wait(PATIENCE)
    assert child.returncode == 130
    assert alive(processes) == []
    assert command.left(child.pid) == []


@once
def test_interrupted_owner_ends_a_domain_that_hangs(command: Command) -> None:
    with start(command, "--rng", "on") as child:
        [domain] = [pid for pid in below(child.pid) if "vmm" in command_line(pid)]
        os.kill(domain, signal.SIGSTOP)
        child.terminate()
        _, err = child.communicate(timeout=PATIENCE)
    assert (child.returncode, err) == (130, "")
    assert command.left(child.pid) == []


# ---- kvmpv backend


@once
@pytest.mark.usefixtures("nothing_left")
def test_backend_of_anybody_is_used_and_connected_to_again(
    image: Path, tmp_path: Path, command: Command
) -> None:
    path = tmp_path / "d.sock"

    def serve() -> subprocess.Popen[str]:
        argv = [KVMPV, "backend", "block", str(image), "--socket", str(path)]
        server = subprocess.Popen(argv, env=command.environment, stderr=subprocess.PIPE, text=True)
        assert server.stderr is not None
        assert server.stderr.readline().startswith("kvmpv: serving --disk ")
        return server

    def end(server: subprocess.Popen[str]) -> None:
        server.send_signal(signal.SIGINT)
        _, rest = server.communicate(timeout=PATIENCE)
        assert (server.returncode, path.exists()) == (0, False), rest

    server = serve()
    try:
        with Guest("disk n=2000 depth=8", disks=[f"vhost-user={path}"]) as guest:
            guest.expect("disk-begins")
            end(server)
            server = serve()
            guest.end()
        assert guest.failures == []
    finally:
        end(server)


@once
def test_killed_backend_leaves_no_socket(image: Path, tmp_path: Path, command: Command) -> None:
    path = tmp_path / "d.sock"
    with command.start("backend", "block", str(image), "--socket", str(path)) as server:
        assert server.stderr is not None
        server.stderr.readline()
        assert path.exists()
        [worker] = [pid for pid in below(server.pid) if "dom0" in command_line(pid)]
        os.kill(worker, signal.SIGSTOP)  # it cannot see that its owner is gone
        server.kill()
    until(lambda: not path.exists())
    until(lambda: alive([worker]) == [])
    assert command.nothing_is_left(server.pid)


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


@once
@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["block", "{}/none"], "there is no such image"),
        (["block", "{}/disk.qcow2"], "is qcow2, which qemu-storage-daemon serves"),
        (["block", "vhost-user={}/x"], "is no device that we serve"),
        (["net", "none"], "is no device that we serve"),
        (["net", "bridge=none-such"], "there is no bridge none-such"),
    ],
)
def test_backend_that_cannot_be_costs_one_line(
    arguments: list[str], what: str, tmp_path: Path, command: Command, qcow2: Path
) -> None:
    given = [argument.replace("{}", str(qcow2.parent)) for argument in arguments]
    ended = command.run("backend", *given, "--socket", str(tmp_path / "x.sock"))
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1), ended.err
    assert what in ended.err
    assert command.left(ended.pid) == []


@once
def test_owner_in_another_thread_may_end_that(qcow2: Path) -> None:
    """Backends are tied to the thread that watches over them, not to the one that asked."""
    program = (
        "import sys, threading, time, kvmpv\n"
        "domain = kvmpv.Domain(kernel=sys.argv[1], memory='16M', cmdline='test=spin',"
        " disks=[sys.argv[2]], rng='off')\n"
        "thread = threading.Thread(target=domain.start); thread.start(); thread.join()\n"
        "time.sleep(0.3)\n"
        "print(domain.devices()[0]['restarts'])\n"
        "domain.close()\n"
    )
    argv = [sys.executable, "-c", program, firmware("refguest"), str(qcow2)]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=True, cwd=Path(KVMPV).parents[2]
    )
    assert done.stdout == "0\n"
