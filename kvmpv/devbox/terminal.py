"""Run a command in the box as if it ran here: terminal, signals, streams."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import termios
import tty
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvmpv.agent.client import Connection
    from kvmpv.agent.session import Session

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT,
              signal.SIGUSR1, signal.SIGUSR2)  # fmt: skip
_GIVE_UP_AFTER = 3  # interrupts that the command did not mind


def window_size(fd: int) -> tuple[int, int]:
    """Return (columns, rows) of a terminal."""
    packed = fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8))
    rows, columns = struct.unpack_from("HH", packed)
    return columns, rows


def run(link: Connection, argv: list[str] | str, *, stdin: bool = True, **more: Any) -> int:
    """Run a command on this process's streams; on a terminal if both ends are one."""
    on_terminal = stdin and os.isatty(0) and os.isatty(1)
    size = window_size(0) if on_terminal else None
    session = link.start(argv, stdin=stdin, tty=size, **more)
    source = 0 if stdin else None
    if not on_terminal:
        with _signals(session, resize=False):
            return session.pump(source, 1, 2)
    with _raw(0), _signals(session, resize=True):
        return session.pump(source, 1, 2)


@contextmanager
def _raw(fd: int) -> Iterator[None]:
    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextmanager
def _signals(session: Session, resize: bool) -> Iterator[None]:
    interrupts = 0

    def pass_on(number: int, _frame: object) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        if interrupts > _GIVE_UP_AFTER:
            raise KeyboardInterrupt
        session.signal(number)

    def resized(_number: int, _frame: object) -> None:
        session.resize(*window_size(0))

    before = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    if resize:
        before[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, resized)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
