"""Who rests is there again as soon as there is something to do."""

from __future__ import annotations

import os
import signal
import time
from threading import Thread

from kvmpv._rest import rest


def test_what_is_ready_already_ends_it() -> None:
    fd = os.eventfd(1)
    rest(fd)
    assert os.eventfd_read(fd) == 1
    os.close(fd)


def test_other_threads_run_meanwhile_and_can_end_it() -> None:
    fd = os.eventfd(0)
    writer = Thread(target=os.eventfd_write, args=(fd, 7))
    begin = time.monotonic()
    writer.start()
    rest(fd)
    assert os.eventfd_read(fd) == 7
    assert time.monotonic() - begin < 5
    writer.join()
    os.close(fd)


def test_signal_ends_it() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _frame: seen.append(number))
    fd = os.eventfd(0)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)  # again, if the first one comes too soon
    rest(fd)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    os.close(fd)
    assert seen
