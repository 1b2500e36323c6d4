"""The terminal, the exec channel and the requests of the host, from both sides."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kvm.refguest import Guest

if TYPE_CHECKING:
    import _socket


def test_terminal_echoes_and_ends_at_its_end_of_file() -> None:
    with Guest("echo") as guest:
        guest.expect("ok echo-port-bind")
        guest.domain.terminal.sendall(b"<what is typed>")
        guest.expect("<what is typed>")
        guest.domain.terminal.shutdown(socket.SHUT_WR)
        end = guest.end()
    assert end.kind == "poweroff"
    assert guest.failures == []
    assert "echo 15 bytes" in guest.text
    assert "echo-close" not in guest.text  # closed is closed, for the log too


def test_window_size_is_told() -> None:
    with Guest("echo") as guest:
        guest.expect("ok echo-port-bind")
        guest.domain.set_window(132, 43)
        guest.expect("window 132 43")
        guest.domain.set_window(80, 25)
        guest.expect("window 80 25")


def test_exec_port_is_binary_clean_and_holds_back_both_ways() -> None:
    data = os.urandom(1 << 20)

    def send(port: _socket.socket) -> None:
        port.sendall(data)
        port.shutdown(socket.SHUT_WR)

    with Guest("exec", stats=True) as guest:
        sender = threading.Thread(target=send, args=(guest.domain.exec_port,))
        sender.start()
        assert guest.expect_exec(len(data)) == data
        end = guest.end()
        sender.join()
    assert guest.failures == []
    assert f"echo {len(data)} bytes" in guest.text
    assert {"echo-end", "echo-close", "echo-after-close"} <= guest.passed
    assert end.kind == "poweroff"


def test_guest_goes_on_when_nobody_reads_its_exec_port() -> None:
    with Guest("exec") as guest:
        guest.close_exec()
        end = guest.end()
    assert end.kind == "poweroff"
    assert guest.failures == []


def test_port_that_the_host_has_closed_costs_nothing() -> None:
    def cpu_ticks(pid: int) -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    with Guest("halt") as guest:
        guest.expect("halting")
        guest.close_exec()
        time.sleep(0.1)
        before = cpu_ticks(guest.domain.pid)
        time.sleep(0.5)
        assert cpu_ticks(guest.domain.pid) - before < 10


def test_request_for_poweroff() -> None:
    with Guest("requests") as guest:
        guest.expect("ready")
        guest.domain.request_poweroff()
        end = guest.end()
    assert end.kind == "poweroff"
    assert "request 1" in guest.text
    assert guest.failures == []


def test_requests_for_sysrq_and_vcpus_come_once_each() -> None:
    with Guest("requests", vcpus=2, max_vcpus=8) as guest:
        guest.expect("ready")
        guest.domain.sysrq("t")
        guest.expect("sysrq t")
        guest.domain.set_vcpus(5)
        guest.expect("vcpus 1f 0 0 0")
        guest.domain.request_poweroff()
        end = guest.end()
    assert end.kind == "poweroff"
    assert re.findall(r"^request (\w+)$", guest.text, re.MULTILINE) == ["8", "10", "1"]


def test_request_for_reboot_boots_again_in_place() -> None:
    with Guest("requests") as guest:
        guest.expect("ready")
        pid = guest.domain.pid
        guest.domain.request_reboot()
        guest.expect("request 2")
        del guest.output[:]
        guest.expect("ready")
        assert guest.domain.pid == pid
        assert guest.domain.status()["boots"] == "2"
        guest.domain.request_poweroff()
        assert guest.end().kind == "poweroff"


@pytest.mark.parametrize("times", [1, 3])
def test_reboot_has_fresh_memory_and_another_seed(times: int) -> None:
    with Guest("reboot") as guest:
        stream = guest.domain.exec_port
        for _ in range(times):
            guest.expect("boot generation")
            del guest.output[: guest.output.index(b"seed")]
            stream.sendall(b"r")
            assert stream.recv(1) == b""  # the stream ends with the guest that it led to
            stream = guest.domain.attach(1)
        guest.expect("boot generation")
        stream.sendall(b"p")
        end = guest.end()
    assert end.kind == "poweroff"
    assert guest.failures == []
    assert len(set(re.findall(r"seed (\w+)", guest.text))) == times + 1
