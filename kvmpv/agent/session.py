"""One command that runs at an agent, and its streams."""

from __future__ import annotations

import os
import select

from kvmpv.agent import frames
from kvmpv.errors import AgentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, Protocol

    class _Link(Protocol):
        failure: AgentError | None

        @property
        def unsent(self) -> bool: ...
        def send(self, frame: bytes) -> None: ...
        def flush(self) -> None: ...
        def receive(self, current: Session) -> None: ...
        def forget(self, session: Session) -> None: ...
        def borrow_event(self) -> int: ...
        def return_event(self, fd: int) -> None: ...
        def fileno(self) -> int: ...


_READ: Final = 32 * 1024
_PIPE_BUF: Final = 4096  # a pipe that polls writable takes this much without blocking
_IN: Final = select.POLLIN
_OUT: Final = select.POLLOUT


class Session:
    """Follow one command from its start to its status.

    ``write``, ``end_input``, ``signal`` and ``resize`` may be called from signal handlers;
    ``pump`` or ``wait`` by one thread.
    """

    WINDOW: Final = 256 * 1024

    def __init__(self, link: _Link, number: int) -> None:
        self.id = number
        self.status: int | None = None
        self.answers: list[tuple[int, bytes]] = []
        self._link = link
        self._wake = link.borrow_event()
        self._input: int | bytes | None = None
        self._sinks: list[int | bytearray | None] = [None, None, None]
        self._pending: list[list[bytes | memoryview]] = [[], [], []]
        self._owed = [0, 0, 0]
        self._credit = 0
        self._ended = False
        self._signals = -1
        self._failure: AgentError | None = None

    # ---- What a caller does -----------------------------------------------------------

    def pump(
        self,
        stdin: int | bytes | None,
        stdout: int | bytearray | None,
        stderr: int | bytearray | None,
        signals: int = -1,
    ) -> int:
        """Move the streams from and to descriptors, or bytes, until the command has ended.

        Returns its status, 128 + N for signal N; ``None`` discards. Raises AgentError when
        the agent goes away first, or could not start the command. ``signals`` is the other end
        of signal.set_wakeup_fd(): without it a signal just before a wait is heard only after that.
        """
        self._input = stdin
        self._signals = signals
        self._sinks = [None, stdout, stderr]
        try:
            while self.status is None or any(self._pending):
                if self._link.failure is not None and not any(self._pending):
                    raise AgentError(self._link.failure.message)
                self._poll()
            if self._failure is not None:
                raise self._failure
            return self.status
        finally:
            if self.status is None:
                self._link.send(frames.pack(frames.CLOSE, self.id))
            self._link.forget(self)
            self.close()

    def wait(self) -> int:
        """Wait for the command's end, its output discarded; return its status."""
        return self.pump(None, None, None)

    def write(self, data: bytes) -> int:
        """Send standard input; returns how many bytes of it the agent had room for."""
        taken = data[: self._credit]
        self._credit -= len(taken)
        if taken:
            self._link.send(frames.pack_data(self.id, frames.STDIN, taken))
        return len(taken)

    def end_input(self) -> None:
        """Send the end of file of standard input."""
        if not self._ended:
            self._ended = True
            self._link.send(frames.pack(frames.EOF, self.id, b"", frames.STDIN))

    def signal(self, number: int) -> None:
        """Send a signal to the command's process group."""
        self._link.send(frames.pack_word(frames.SIGNAL, self.id, number))

    def resize(self, columns: int, rows: int) -> None:
        """Tell the command's terminal its new size."""
        self._link.send(frames.pack_resize(self.id, columns, rows))

    # ---- What the connection does -------------------------------------------------------

    def inbox(self, kind: int, stream: int, payload: bytes) -> None:
        """Take one frame that came for this session."""
        if kind == frames.DATA and stream in (frames.STDOUT, frames.STDERR):
            if payload:
                self._pending[stream].append(payload)
        elif kind == frames.CREDIT:
            self._credit += frames.unpack_word(payload)
        elif kind == frames.EXIT:
            self._exited(*frames.unpack_exit(payload))
        elif kind == frames.EOF:
            if stream == frames.STDIN:
                self._input = None
                self._ended = True
        elif self.id == 0:
            self.answers.append((kind, payload))

    def wake(self) -> None:
        """Make the thread that waits in this session look again."""
        wake = self._wake
        if wake >= 0:
            os.eventfd_write(wake, 1)

    def close(self) -> None:
        """Give the session's event back."""
        wake, self._wake = self._wake, -1
        if wake >= 0:
            self._link.return_event(wake)

    def poll_once(self, poll: select.poll, timeout: float | None) -> list[tuple[int, int]]:
        """Wait for the socket, a wake-up, a signal or what ``poll`` holds; handle all but that."""
        link = self._link
        sock = link.fileno()
        if link.failure is None:  # a closed socket stays readable for ever
            poll.register(sock, _IN | _OUT if link.unsent else _IN)
        poll.register(self._wake, _IN)
        if self._signals >= 0:
            poll.register(self._signals, _IN)
        ready = poll.poll(None if timeout is None else timeout * 1000)
        others = []
        for fd, events in ready:
            if fd == sock:
                if events & _OUT:
                    link.flush()
                if events & ~_OUT:
                    link.receive(self)
            elif fd == self._wake:
                os.eventfd_read(fd)
            elif fd == self._signals:
                os.read(fd, _READ)
            else:
                others.append((fd, events))
        return others

    # ---- Inside -------------------------------------------------------------------------

    def _exited(self, kind: int, value: int) -> None:
        if kind == frames.EXIT_CODE:
            self.status = value
        elif kind == frames.EXIT_SIGNAL:
            self.status = 128 + value
        elif kind == frames.EXIT_NOT_STARTED:
            # As shells count: 127 not found, 126 found but not to be run.
            self.status = 127 if value == 2 else 126
            self._failure = None
            text = f"cannot run the command: {os.strerror(value)}\n"
            self._pending[frames.STDERR].append(text.encode())
        else:
            self.status = 126
            self._failure = AgentError("the agent runs too many commands already")

    def _poll(self) -> None:
        poll = select.poll()
        wanted: dict[int, int] = {}
        source = self._input
        if isinstance(source, int) and self._credit and not self._ended and self.status is None:
            wanted[source] = _IN
        for stream in (frames.STDOUT, frames.STDERR):
            sink = self._sinks[stream]
            if isinstance(sink, int) and self._pending[stream]:
                wanted[sink] = wanted.get(sink, 0) | _OUT
        for fd, events in wanted.items():
            poll.register(fd, events)
        if isinstance(source, bytes):
            self._feed_bytes(source)
        ready = dict(self.poll_once(poll, None))
        if isinstance(source, int) and ready.get(source, 0) & wanted.get(source, 0) & _IN | (
            ready.get(source, 0) & ~(_IN | _OUT)
        ):
            self._feed(source)
        for stream in (frames.STDOUT, frames.STDERR):
            sink = self._sinks[stream]
            if not isinstance(sink, int):
                self._collect(stream, sink)
            elif ready.get(sink, 0):
                self._drain(stream, sink)

    def _feed(self, source: int) -> None:
        try:
            data = os.read(source, min(_READ, self._credit))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.write(data)
        else:
            self._input = None
            self.end_input()

    def _feed_bytes(self, source: bytes) -> None:
        if self.status is not None or self._ended:
            return
        self._input = source[self.write(source) :]
        if not self._input:
            self._input = None
            self.end_input()

    def _collect(self, stream: int, sink: bytearray | None) -> None:
        pending = self._pending[stream]
        while pending:
            chunk = pending.pop(0)
            if sink is not None:
                sink += chunk
            self._grant(stream, len(chunk))

    def _drain(self, stream: int, sink: int) -> None:
        pending = self._pending[stream]
        if not pending:
            return
        head = memoryview(pending[0])
        try:
            done = os.write(sink, head[:_PIPE_BUF])
        except BlockingIOError:
            return
        except OSError:
            self._sinks[stream] = None
            self._link.send(frames.pack(frames.EOF, self.id, b"", stream))
            return
        if done == len(head):
            pending.pop(0)
        else:
            pending[0] = head[done:]
        self._grant(stream, done)

    def _grant(self, stream: int, count: int) -> None:
        self._owed[stream] += count
        if self._owed[stream] >= self.WINDOW // 4 and self.status is None:
            self._link.send(frames.pack_word(frames.CREDIT, self.id, self._owed[stream], stream))
            self._owed[stream] = 0
