"""Users that are killed, at any moment, leave nothing that stays."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvmpv import hostnet
from kvmpv.hostnet import filters, links, nft, users
from tests.host.hostnet.conftest import dnsmasqs
from tests.host.hostnet.guest import Guest
from tests.waiting import until

if TYPE_CHECKING:
    from tests.host.hostnet.conftest import Attach
    from tests.host.net.namespace import Namespace

CHECKOUT = Path(__file__).parents[3]
KVMPV = str(CHECKOUT / "build/bin/kvmpv")


def start(host: Namespace, name: str, spec: str = "nat") -> subprocess.Popen[bytes]:
    return host.popen(
        *(sys.executable, "-m", "tests.host.hostnet.user", name, spec),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=CHECKOUT,
    )


def said(user: subprocess.Popen[bytes]) -> list[str]:
    assert user.stdout
    return user.stdout.readline().decode().split()


def end(user: subprocess.Popen[bytes], *, kill: bool = False) -> None:
    if kill:
        user.kill()
    assert user.stdin
    assert user.stdout
    user.stdin.close()
    assert user.wait(20) == (-9 if kill else 0)
    user.stdout.close()


def test_killed_user_is_swept(host: Namespace) -> None:
    user = start(host, "web", "nat,forward=tcp:8080:80,antispoof")
    assert said(user)[0] == "kvtap0"
    end(user, kill=True)
    assert "kvmpv0" in host.interfaces()
    host.call(hostnet.sweep)
    assert "kvmpv0" not in host.interfaces()


def test_network_of_killed_commands_goes_with_the_last(host: Namespace, tmp_path: Path) -> None:
    servers = []
    for name in ("one", "two"):
        argv = [KVMPV, "backend", "net", "nat,antispoof", "--socket", f"{tmp_path}/{name}"]
        servers.append(host.popen(*argv, stderr=subprocess.PIPE))
        assert servers[-1].stderr
        assert servers[-1].stderr.readline().startswith(b"kvmpv: serving ")
    until(lambda: len(tables(host)) == 3, 20)
    kill(servers[0])
    until(lambda: len(tables(host)) == 2, 20)
    assert len(dnsmasqs(tmp_path)) == 1
    assert "kvmpv0" in host.interfaces()
    kill(servers[1])
    until(lambda: not (tmp_path / "kvmpv-net").exists())


def tables(host: Namespace) -> list[str]:
    return host.run("nft", "list", "tables").splitlines()


def kill(server: subprocess.Popen[bytes]) -> None:
    server.kill()
    server.wait()
    assert server.stderr
    server.stderr.close()


def test_network_of_a_killed_user_is_the_next_ones(attach: Attach, host: Namespace) -> None:
    users = [start(host, name) for name in ("web", "db")]
    for user in users:
        assert said(user)
    end(users[0], kill=True)
    card = attach("web", "nat")
    assert card.address
    end(users[1], kill=True)
    host.call(card.release)
    assert "kvmpv0" not in host.interfaces()


def test_users_that_start_and_end_at_once_do_not_meet(host: Namespace) -> None:
    users = [start(host, f"d{number}") for number in range(6)]
    answers = [said(user) for user in users]
    assert len({answer[2] for answer in answers}) == 6
    assert len({answer[0] for answer in answers}) == 6
    for user in users:
        assert user.stdin
        user.stdin.close()
    for user in users:
        end(user)


def test_user_killed_at_any_moment_leaves_a_network_that_works(
    attach: Attach, host: Namespace
) -> None:
    choose = random.Random(4)
    for _ in range(6):
        user = start(host, "web", "nat,antispoof")
        time.sleep(choose.uniform(0.05, 0.5))
        end(user, kill=True)
    card = attach("web", "nat")
    assert card.address
    assert host.run("nft", "list", "tables").count("table inet") == 1


def test_half_made_network_is_mended(attach: Attach, host: Namespace, tmp_path: Path) -> None:
    card = attach("web", "nat")
    [record] = tmp_path.rglob("dnsmasq.pid")
    subprocess.run(["kill", "-9", record.read_text().strip()], check=True)
    host.call(nft.delete, "inet", "kvmpv_kvmpv0")
    host.call(links.remove_bridge, "kvmpv0")
    other = attach("db", "nat")
    assert other.address != card.address
    assert "kvmpv0" in host.interfaces()
    assert "kvmpv_kvmpv0" in host.run("nft", "list", "tables")
    assert Path(f"/proc/{record.read_text().strip()}").exists()


def test_what_others_took_away_is_back_with_the_next_user(
    attach: Attach, host: Namespace, tmp_path: Path
) -> None:
    with Guest(attach("web", "nat,antispoof")) as guest:
        _, router, *_ = guest.dhcp(tmp_path)
        host.run("nft", "flush", "ruleset")
        host.ip("link delete kvmpv0")
        host.run("sysctl", "-w", "net.ipv6.conf.all.disable_ipv6=1")
        attach("db", "nat")
        host.run("sysctl", "-w", "net.ipv6.conf.all.disable_ipv6=0")
        names = {line.split()[-1] for line in tables(host)}
        assert names == {"kvmpv_kvtap0", "kvmpv_kvmpv0"}
        guest.run("busybox", "ping", "-c1", "-W5", router)


@pytest.mark.usefixtures("host")
def test_folder_that_its_last_user_has_just_removed_is_made_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flock, inside = fcntl.flock, Path(users.folder()) / "users"

    def late(fd: int, how: int) -> None:
        if inside.exists():
            inside.rmdir()
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    inside.mkdir(parents=True)
    with users.Lock():
        assert inside.is_dir()


def test_users_signals_are_not_dnsmasqs(attach: Attach, host: Namespace) -> None:
    blocked = {signal.SIGHUP, signal.SIGTERM}
    before = host.call(signal.pthread_sigmask, signal.SIG_BLOCK, blocked)
    try:
        card = attach("web", "nat")
        other = attach("db", "nat")
    finally:
        host.call(signal.pthread_sigmask, signal.SIG_SETMASK, before)
    assert card.address != other.address


def test_dnsmasq_whose_starter_was_killed_is_ended(
    attach: Attach, host: Namespace, tmp_path: Path
) -> None:
    attach("web", "nat")
    [record] = tmp_path.rglob("dnsmasq.pid")
    [before] = dnsmasqs(tmp_path)
    record.unlink()  # as if it were not written yet
    attach("db", "nat")
    [after] = dnsmasqs(tmp_path)
    assert after != before
    record.unlink()  # the fixtures see that this one goes too


def test_half_written_files_go_with_the_folder(host: Namespace, tmp_path: Path) -> None:
    host.call(leave_files)
    assert [path.name for path in tmp_path.rglob("*.new")] == ["network.new"]
    host.call(hostnet.sweep)
    assert not (tmp_path / "kvmpv-net").exists()


def leave_files() -> None:
    folder = Path(users.folder())
    (folder / "users").mkdir(parents=True)
    for name in ("network.new", "dnsmasq.conf.17"):
        (folder / name).touch()


def test_lock_of_a_killed_user_is_kept_by_what_that_has_started(
    host: Namespace, tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    run = "from kvmpv.hostnet import tools, users\nwith users.Lock(): tools.run"
    user = host.popen(sys.executable, "-c", f"{run}(['/bin/cat', {str(fifo)!r}])", cwd=CHECKOUT)
    with fifo.open("wb"):  # cat has begun
        user.kill()
        user.wait()
        [lock] = tmp_path.rglob("lock")
        with lock.open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    host.call(hostnet.sweep)  # waits for cat's end
    assert not lock.exists()


def test_release_that_is_cut_off_is_finished_by_the_next(
    attach: Attach, host: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = attach("web", "nat,antispoof")

    def cut(_tap: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(filters, "unwatch", cut)
        with pytest.raises(KeyboardInterrupt):
            host.call(card.release)
    host.call(hostnet.sweep)  # the fixtures see that nothing is left
