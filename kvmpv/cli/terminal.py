"""Join this process's terminal to a domain's: raw mode, window size, Ctrl-] to leave."""

from __future__ import annotations

import _thread
import os
import select
import sys
import termios

from kvmpv.errors import KvmpvError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Any, Final

    from kvmpv.toolstack.domain import Domain, End
else:
    import _signal as signal  # signal itself imports enum, which takes a third of our start

LEAVE: Final = b"\x1d"  # Ctrl-]
CHUNK: Final = 65536


class Terminal:
    """Relay between stdin, a domain's terminal, and ``output`` (a descriptor, None: nowhere)."""

    def __init__(self, domain: Domain, output: int | None) -> None:
        self._domain = domain
        self._output = output
        self._saved: list[Any] | None = None

    def relay(self) -> End:
        """Relay until the domain ends, or the user leaves; return the end."""
        domain = self._domain
        domain.terminal.setblocking(False)
        self._enter_raw()
        try:
            poll = select.poll()
            poll.register(domain.terminal.fileno(), select.POLLIN)
            poll.register(0, select.POLLIN)
            while True:
                for fd, _ in poll.poll():
                    if fd == 0 and not self._from_user(poll):
                        return self._leave()
                    if fd != 0 and not self._from_guest():
                        return domain.wait_for_end()
        finally:
            self._restore()

    def drain_in_background(self) -> _thread.LockType:
        """Copy the guest's console to the output in a thread; the lock is free once it ends."""
        finished = _thread.allocate_lock()
        finished.acquire()

        def drain() -> None:
            self._domain.terminal.setblocking(True)
            while self._from_guest():
                pass
            finished.release()

        _thread.start_new_thread(drain, ())
        return finished

    # ---- bytes

    def _from_user(self, poll: select.poll) -> bool:
        data = os.read(0, 4096)
        if not data:
            poll.unregister(0)
            return True
        if self._saved is not None and LEAVE in data:
            return False
        sent = 0
        while sent < len(data):
            try:
                sent += self._domain.terminal.send(data[sent:])
            except BlockingIOError:
                select.select([], [self._domain.terminal], [])
            except OSError:
                return True  # the guest ended: its side of the relay finds that out
        return True

    def _from_guest(self) -> bool:
        try:
            data = self._domain.terminal.recv(CHUNK)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        view = memoryview(data)
        while view and self._output is not None:
            view = view[os.write(self._output, view) :]
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

    def _tell_window(self) -> None:
        try:
            size = os.get_terminal_size(0)
            self._domain.set_window(size.columns, size.lines)
        except (OSError, KvmpvError):
            pass  # it has no size, or the guest is gone
