"""Join this process's terminal to a domain's: raw mode, window size, Ctrl-] to leave."""

from __future__ import annotations

import _thread
import os
import select
import sys
import termios

from kvmpv.errors import KvmpvError
from kvmpv.toolstack.afterwards import Afterwards
from kvmpv.toolstack.processes import find

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Any, Final

    from kvmpv.toolstack.domain import Domain, End
else:
    import _signal as signal  # signal itself imports enum, which takes a third of our start

LEAVE: Final = b"\x1d"  # Ctrl-]
CHUNK: Final = 65536
PENDING_MAX: Final = 65536  # bytes typed that the guest has not taken


class Terminal:
    """Relay between stdin, a domain's terminal, and ``output`` (a descriptor, None: nowhere).

    ``wake`` becomes readable at signals, whose handlers have then run.
    """

    def __init__(self, domain: Domain, output: int | None, wake: int = -1) -> None:
        self._wake = wake
        self._domain = domain
        self._output = output
        self._saved: list[Any] | None = None
        self._afterwards: Afterwards | None = None
        self._pending = b""
        self._user_has_more = True

    def relay(self) -> End:
        """Relay until the domain ends, or the user leaves; return the end."""
        domain = self._domain
        domain.terminal.setblocking(False)
        self._enter_raw()
        try:
            while True:
                for fd, events in self._poll().poll():
                    if fd == 0 and not self._from_user():
                        return self._leave()
                    if fd == self._wake:
                        os.read(fd, 4096)
                    elif fd != 0:
                        self._to_guest()
                        if events & ~select.POLLOUT and not self._from_guest():
                            return domain.wait_for_end()
        finally:
            self._restore()

    def drain_in_background(self) -> _thread.LockType:
        """Copy the guest's console to the output in a thread; the lock is free once it ends."""
        finished = _thread.allocate_lock()
        finished.acquire()

        def drain() -> None:
            self._domain.terminal.setblocking(True)
            try:
                while self._from_guest():
                    pass
            except OSError:
                pass  # nobody reads it any more
            finally:
                finished.release()

        _thread.start_new_thread(drain, ())
        return finished

    # ---- bytes

    def _poll(self) -> select.poll:
        """Return what to wait for: to wait for one side alone would let the other starve."""
        poll = select.poll()
        if self._wake >= 0:
            poll.register(self._wake, select.POLLIN)
        to_guest = select.POLLOUT if self._pending else 0
        poll.register(self._domain.terminal.fileno(), select.POLLIN | to_guest)
        # A terminal is read in any case, for Ctrl-]; what is too much for the guest is dropped.
        if self._user_has_more and (self._saved is not None or not self._pending):
            poll.register(0, select.POLLIN)
        return poll

    def _from_user(self) -> bool:
        """Take what the user typed; return whether they stay."""
        try:
            data = os.read(0, 4096)
        except OSError:
            data = b""  # the terminal is gone: SIGHUP says more
        self._user_has_more = bool(data)
        if self._saved is not None and LEAVE in data:
            return False
        if len(self._pending) < PENDING_MAX:
            self._pending += data
        self._to_guest()
        return True

    def _to_guest(self) -> None:
        try:
            sent = self._domain.terminal.send(self._pending) if self._pending else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            sent = len(self._pending)  # the guest ended: its side of the relay finds that out
        self._pending = self._pending[sent:]

    def _from_guest(self) -> bool:
        try:
            data = self._domain.terminal.recv(CHUNK)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        view = memoryview(data)
        while view and self._output is not None:
            try:
                view = view[os.write(self._output, view) :]
            except BlockingIOError:  # somebody has made our terminal so
                select.select([], [self._output], [])
        return bool(data)

    def _leave(self) -> End:
        self._restore()
        print("\r\nkvmpv: leaving; the guest is asked to power off", file=sys.stderr)
        return self._domain.poweroff()

    # ---- the user's terminal

    def _enter_raw(self) -> None:
        if not os.isatty(0):
            return
        self._saved = termios.tcgetattr(0)
        self._afterwards = Afterwards(_stty(self._saved), stdin=0)
        raw = termios.tcgetattr(0)
        raw[0] &= ~(termios.BRKINT | termios.ICRNL | termios.INPCK | termios.ISTRIP | termios.IXON)
        raw[1] &= ~termios.OPOST
        raw[2] |= termios.CS8
        raw[3] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN | termios.ISIG)
        raw[6][termios.VMIN], raw[6][termios.VTIME] = 1, 0
        termios.tcsetattr(0, termios.TCSAFLUSH, raw)
        signal.signal(signal.SIGWINCH, lambda *_: self._tell_window())
        self._tell_window()

    def _restore(self) -> None:
        if self._saved is not None:
            termios.tcsetattr(0, termios.TCSAFLUSH, self._saved)
            self._saved = None
            signal.signal(signal.SIGWINCH, signal.SIG_DFL)
        if self._afterwards is not None:
            self._afterwards.cancel()
            self._afterwards = None

    def _tell_window(self) -> None:
        try:
            size = os.get_terminal_size(0)
            self._domain.set_window(size.columns, size.lines)
        except (OSError, KvmpvError):
            pass  # it has no size, or the guest is gone


def _stty(modes: list[Any]) -> list[str]:
    """Return the command that sets modes again, as stty(1) takes what its ``--save`` prints."""
    flags, characters = modes[:4], modes[6]
    codes = [one if isinstance(one, int) else one[0] for one in characters]
    return [find("stty", "coreutils"), ":".join(f"{value:x}" for value in [*flags, *codes])]
