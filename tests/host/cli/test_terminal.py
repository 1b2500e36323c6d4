"""The relay between a user and a guest's terminal, whoever of the two is slow or gone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
MIB = 1 << 20

# A domain that is only a terminal: its guest does GUEST with its end of it, in a thread.
DRIVER = """
import os, socket, sys, threading
sys.path.insert(0, {root!r})
from kvmpv.cli.terminal import Terminal

class Domain:
    def __init__(self):
        self.terminal, self.guest = socket.socketpair()
    def wait_for_end(self):
        return "the end"
    def poweroff(self):
        return "left"

def live(guest):
{guest}
    guest.close()

domain = Domain()
threading.Thread(target=live, args=(domain.guest,), daemon=True).start()
output = {output}
print(Terminal(domain, output).relay(), file=sys.stderr)
"""


def relay(guest: str, stdin: bytes, output: str = "1") -> tuple[bytes, bytes]:
    """Run a relay to its end; return its output, and what it said of the end."""
    program = DRIVER.format(root=str(ROOT), guest=guest, output=output)
    argv = [sys.executable, "-c", program]
    done = subprocess.run(argv, input=stdin, capture_output=True, timeout=60, check=False)
    return done.stdout, done.stderr


def test_both_may_talk_before_they_listen() -> None:
    # Each side sends more than all buffers hold before the guest reads a byte.
    guest = f"""
    guest.sendall(b"g" * {4 * MIB})
    count = 0
    while count < {2 * MIB}:
        count += len(guest.recv(65536))
    guest.sendall(b"%d" % count)
"""
    out, err = relay(guest, b"u" * (2 * MIB))
    assert out == b"g" * (4 * MIB) + str(2 * MIB).encode()
    assert err == b"the end\n"


def test_ctrl_bracket_in_a_file_is_data() -> None:
    out, err = relay("    guest.sendall(guest.recv(100))", b"a\x1db")
    assert (out, err) == (b"a\x1db", b"the end\n")


def test_end_of_the_input_is_not_the_end_of_the_guest() -> None:
    guest = "    import time; time.sleep(0.1); guest.sendall(b'still here')"
    assert relay(guest, b"") == (b"still here", b"the end\n")


def test_guest_that_is_gone_ends_the_relay_with_input_left() -> None:
    out, err = relay("    guest.sendall(b'bye')", b"u" * MIB)
    assert (out, err) == (b"bye", b"the end\n")


def test_output_that_does_not_wait_is_waited_for(tmp_path: Path) -> None:
    fifo, copy = tmp_path / "fifo", tmp_path / "copy"
    os.mkfifo(fifo)
    with copy.open("wb") as file, subprocess.Popen(["cat", str(fifo)], stdout=file) as reader:
        output = f"os.open({str(fifo)!r}, os.O_WRONLY); os.set_blocking(output, False)"
        out, err = relay(f"    guest.sendall(b'o' * {MIB})", b"", output)
        assert reader.wait(timeout=60) == 0
    assert (out, err) == (b"", b"the end\n")
    assert copy.read_bytes() == b"o" * MIB
