"""A worker's process: it serves one domain its devices, until it is told to end.

The main thread waits in one epoll; what moves data are the devices' own threads. All that it needs
is opened before it says that it is ready.
"""

from __future__ import annotations

import _thread
import gc
import os

from kvmpv.dom0 import _process
from kvmpv.dom0.control import Control
from kvmpv.dom0.orders import Orders, parse
from kvmpv.dom0.worker import Worker
from kvmpv.errors import KvmpvError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Final
else:
    import _signal as signal  # signal itself imports enum, which takes a third of our start

THREAD_STACK: Final = 256 << 10
# What opening images and taps may take, as linux/capability.h numbers it: DAC_OVERRIDE,
# DAC_READ_SEARCH, FOWNER, NET_ADMIN, IPC_LOCK (what io_uring locked was counted before Linux 5.12).
CAPABILITIES: Final = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 12 | 1 << 14
STDERR: Final = 2


def _follow_signals() -> int:
    """Return a descriptor that the numbers of signals come out of.

    It ends the main thread's wait, whatever that waits in.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    return reader


def _heed(worker: Worker, signals: int) -> None:
    """End at SIGTERM; at SIGHUP look at the images' sizes, which somebody has changed."""
    for number in os.read(signals, 64):
        if number == signal.SIGTERM:
            worker.end("terminated")
        elif number == signal.SIGHUP:
            worker.resize_all()


def _drop_privileges() -> None:
    """Give up what no device needs; a process that has nothing to give up is as good."""
    _process.name(b"kvmpv-dom0")
    _process.no_new_privileges()
    _process.keep_capabilities(CAPABILITIES)


def _say(fd: int, text: str) -> None:
    if fd >= 0:
        try:
            os.write(fd, f"{text}\n".encode())
        except (BrokenPipeError, ConnectionResetError):
            pass  # its owner is gone, as the lifeline says next
        os.close(fd)


def _add_devices(worker: Worker, orders: Orders) -> None:
    for device in orders.devices:
        try:
            worker.add(device)
        except KvmpvError as error:
            if not orders.restart:
                _say(orders.ready, f"error {device.number} {error}")
                raise
            # The others' guest has waited long enough; who restarted us may try this one again.
            worker.add_failed(device, error)


def _serve(orders: Orders, signals: int) -> int:
    worker = Worker(orders.name, orders.log if orders.log >= 0 else STDERR)
    worker.loop.watch(signals, lambda _: _heed(worker, signals))
    if orders.lifeline >= 0:
        worker.loop.watch(orders.lifeline, lambda _: worker.end("the domain's owner is gone"))
    try:
        _add_devices(worker, orders)
    except KvmpvError as error:
        worker.log(str(error))
        for slot in worker.slots.values():
            slot.close()
        return error.exit_status
    if orders.control >= 0:
        Control(worker, orders.control)
    gc.collect()
    gc.freeze()
    _say(orders.ready, "ok")
    worker.run()
    return 0


def main(arguments: list[str]) -> None:
    """Serve the devices that the arguments describe, and leave without looking back."""
    _drop_privileges()
    signals = _follow_signals()
    _thread.stack_size(THREAD_STACK)
    orders = parse(arguments)
    status = _serve(orders, signals)
    # No interpreter shutdown: everything that this process has, the kernel takes back faster.
    os._exit(status)
