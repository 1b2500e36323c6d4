"""A worker's life: what it serves, what it is told, and how it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from kvmpv.errors import VhostUserError
from kvmpv.vhostuser.frontend import Frontend, open_connection
from tests.host.dom0.workers import PROGRAM, Worker, rests
from tests.unit.vhostuser.driver import Driver, readable
from tests.unit.vhostuser.peer import raw
from tests.waiting import until

if TYPE_CHECKING:
    from pathlib import Path


def random_bytes(driver: Driver, count: int = 64) -> bytes:
    """Have a buffer filled."""
    at = driver.memory.take(count)
    driver.rings[0].post((at, count, True))
    _, written = driver.rings[0].wait()
    return driver.memory.map[at : at + written]


def running(frontend: Frontend) -> Driver:
    driver = Driver(frontend, [8])
    driver.start()
    return driver


def test_devices_are_served_side_by_side(tmp_path: Path) -> None:
    with Worker(tmp_path, "rng", "rng,rate=0") as worker:
        drivers = [running(worker.frontend(number)) for number in (0, 1)]
        got = {random_bytes(driver) for driver in drivers for _ in range(5)}
        assert len(got) == 10
        assert {len(one) for one in got} == {64}
        assert worker.ask("status") == "ok 0=rng,connected 1=rng,connected"
        assert worker.stats()["1.bytes"] == 320
        for driver in drivers:
            driver.close()
        until(lambda: worker.ask("status") == "ok 0=rng,waiting 1=rng,waiting")
        assert "device" not in worker.log


@pytest.mark.parametrize("how", ["signal", "lifeline", "verb"])
def test_it_ends_when_it_is_told_to(how: str, tmp_path: Path) -> None:
    with Worker(tmp_path, "rng") as worker:
        driver = running(worker.frontend())
        random_bytes(driver)
        if how == "signal":
            worker.process.send_signal(signal.SIGTERM)
        elif how == "lifeline":
            worker.lifeline.close()
        else:
            assert worker.ask("terminate") == "ok"
        assert worker.wait() == 0
        assert worker.log.count("\n") == 1
        with pytest.raises(VhostUserError):
            driver.frontend.get_features()
        driver.close()


def test_a_hostile_front_end_ends_its_device_alone(tmp_path: Path) -> None:
    with Worker(tmp_path, "rng", "rng") as worker:
        good = running(worker.frontend(1))
        worker.frontends[0].sendall(b"no message at all, but enough")
        until(lambda: worker.ask("status").endswith("0=rng,failed 1=rng,connected"))
        assert len(random_bytes(good)) == 64
        assert worker.log.count("device 0 (rng): its front end") == 1
        good.close()


def test_a_failed_device_can_be_had_again(tmp_path: Path) -> None:
    with Worker(tmp_path, "rng") as worker:
        worker.frontends[0].sendall(b"no message at all, but enough")
        until(lambda: worker.ask("status") == "ok 0=rng,failed")
        ours, theirs = socket.socketpair()
        assert worker.ask("connect 0", theirs.fileno()) == "ok"
        theirs.close()
        driver = running(Frontend(raw(ours)))
        assert len(random_bytes(driver)) == 64
        driver.close()


def test_a_broken_ring_is_told_by_its_error_eventfd(tmp_path: Path) -> None:
    with Worker(tmp_path, "rng") as worker:
        driver = running(worker.frontend())
        ring = driver.rings[0]
        ring.offer(9)  # a head that the ring does not have
        os.eventfd_write(ring.kick, 1)
        assert readable(ring.err, 5)
        assert worker.log.count("broke a queue") == 1
        driver.frontend.reset_device()
        driver.frontend.set_features(driver.frontend.features & 1 << 32)
        driver.close()


def test_devices_come_and_go(tmp_path: Path) -> None:
    with Worker(tmp_path) as worker:
        assert worker.ask("status") == "ok"
        ours, theirs = socket.socketpair()
        assert worker.ask("device-add 5,rng,rate=100", theirs.fileno()) == "ok"
        again = worker.ask("device-add 5,rng", theirs.fileno())
        assert again == "error device-add: there is a device 5 already"
        theirs.close()
        driver = running(Frontend(raw(ours)))
        assert len(random_bytes(driver)) == 64
        assert worker.ask("limit 5 rate=0") == "ok"
        assert worker.ask("device-remove 5") == "ok"
        assert worker.ask("status") == "ok"
        with pytest.raises(VhostUserError):
            driver.frontend.get_features()
        driver.close()


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("frobnicate", "error unknown verb 'frobnicate'"),
        ("", "error unknown verb ''"),
        ("resize", "error resize: wrong arguments"),
        ("resize 7", "error resize: there is no device 7"),
        ("connect 0", "error connect: no socket came with that line"),
        ("device-add 3,rng", "error device-add: no socket came with that line"),
        ("limit 0 rate=x", "error limit: rate='x' is no number of bytes a second"),
    ],
)
def test_wrong_lines_are_answered(line: str, answer: str, tmp_path: Path) -> None:
    with Worker(tmp_path, "rng") as worker:
        assert worker.ask(line) == answer


def test_an_owner_that_dies_meanwhile_is_no_error() -> None:
    (lifeline, ours), (ready, theirs) = socket.socketpair(), socket.socketpair()
    ours.close()
    theirs.close()
    with lifeline, ready:
        words = ["name=test", f"lifeline={lifeline.fileno()}", f"ready={ready.fileno()}"]
        done = subprocess.run(
            [sys.executable, "-I", "-S", PROGRAM, *words],
            pass_fds=[lifeline.fileno(), ready.fileno()],
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        "",
        "kvmpv-dom0 test: ends: the domain's owner is gone\n",
    )


def test_a_device_that_cannot_be_made_ends_the_start(tmp_path: Path) -> None:
    with Worker(tmp_path, "rng", "rng,rate=-3") as worker:
        assert worker.ready == "error 1 rate='-3' is no number of bytes a second"
        assert worker.wait() == 2
        assert "rate='-3'" in worker.log


def test_after_a_restart_such_a_device_fails_alone(tmp_path: Path) -> None:
    with Worker(tmp_path, "rng", "rng,rate=-3", restart=1) as worker:
        assert worker.ready == "ok"
        assert worker.ask("status") == "ok 0=rng,connected 1=rng,failed"


def test_randomness_comes_at_its_rate(tmp_path: Path) -> None:
    with Worker(tmp_path, "rng,rate=20000") as worker:
        driver = running(worker.frontend())
        begin, got = time.monotonic(), 0
        while got < 26000:  # 20000 are there at once
            got += len(random_bytes(driver, 4096))
            driver.memory.next -= 4096
        took = time.monotonic() - begin
        assert 0.25 < took < 2
        assert worker.stats()["0.throttled"] > 0
        driver.close()


def test_ten_idle_devices_use_no_processor(tmp_path: Path) -> None:
    with Worker(tmp_path, *["rng"] * 10) as worker:
        drivers = [running(worker.frontend(number)) for number in range(10)]
        for driver in drivers:
            random_bytes(driver)
        status = f"/proc/{worker.process.pid}/status"
        until(lambda: rests(worker.process.pid))
        before = (worker.cpu_seconds(), switches(status))
        time.sleep(0.5)
        assert (worker.cpu_seconds(), switches(status)) == before
        for driver in drivers:
            driver.close()


def switches(path: str) -> int:
    with open(path) as file:
        return sum(int(line.split()[1]) for line in file if "voluntary_ctxt" in line)


def test_it_keeps_no_privilege_that_it_does_not_need(tmp_path: Path) -> None:
    with Worker(tmp_path, "rng") as worker:
        with open(f"/proc/{worker.process.pid}/status") as file:
            status = dict(
                line.split(":\t", 1) for line in file.read().splitlines() if ":\t" in line
            )
        assert status["Name"] == "kvmpv-dom0"
        assert status["NoNewPrivs"] == "1"
        assert int(status["CapEff"], 16) & ~0x500E == 0
        assert int(status["CapPrm"], 16) & ~0x500E == 0


def test_front_ends_come_one_after_the_other_where_it_listens(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    listener.listen()
    with Worker(tmp_path) as worker:
        line = f"device-add 0,rng,listen={listener.fileno()}"
        assert worker.ask(line) == "error device-add: no socket came with that line"
    with Worker(tmp_path, "rng", listen=listener) as worker:
        for _ in range(2):
            driver = running(open_connection(str(tmp_path / "socket")))
            assert len(random_bytes(driver)) == 64
            driver.close()
        bad = socket.socket(socket.AF_UNIX)
        bad.connect(str(tmp_path / "socket"))
        bad.sendall(b"no message at all, but enough")
        until(lambda: worker.ask("status") == "ok 0=rng,failed")
        bad.close()
        driver = running(open_connection(str(tmp_path / "socket")))
        assert len(random_bytes(driver)) == 64
        assert worker.stats()["0.sessions"] == 4
        driver.close()
    listener.close()
