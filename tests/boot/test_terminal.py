"""The terminal: a shell on hvc0, with the window's size."""

from __future__ import annotations

import select
import time

import kvmpv


def read_until(domain: kvmpv.Domain, wanted: bytes, seconds: float = 30) -> bytes:
    said = b""
    deadline = time.monotonic() + seconds
    while wanted not in said:
        left = deadline - time.monotonic()
        assert left > 0, said
        if select.select([domain.terminal], [], [], left)[0]:
            said += domain.terminal.recv(65536)
    return said


def test_shell_follows_the_window_and_its_jobs_can_be_interrupted() -> None:
    with kvmpv.Domain() as domain:
        domain.set_window(132, 43)
        read_until(domain, b"# ")
        domain.terminal.send(b"stty size\n")
        read_until(domain, b"43 132")
        domain.set_window(80, 25)
        domain.terminal.send(b"sleep 1; stty size\n")
        read_until(domain, b"25 80")
        domain.terminal.send(b"sleep 1000\n")
        time.sleep(1)
        domain.terminal.send(b"\x03")
        domain.terminal.send(b"echo st'i'll here\n")
        read_until(domain, b"still here")
        domain.terminal.send(b"poweroff\n")
        end = domain.wait(timeout=30)
        assert end is not None
        assert end.kind == "poweroff"
