"""The host's side of the agent protocol: run commands in a guest or in the dev box.

Any number of threads may run commands over one connection. There is no thread of the
connection's own: each thread that waits for its command polls the socket as well, and
whichever finds it readable hands out what came.
"""

from __future__ import annotations

import os
import select
import time
from _thread import allocate_lock

from kvmpv.agent import frames
from kvmpv.agent.session import Session
from kvmpv.errors import AgentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import Final

_RECEIVE: Final = 256 * 1024


class Connection:
    """Speak with an agent over a connected stream socket, which the connection then owns.

    Nothing waits for the agent to be there: frames may be sent before a guest has booted.
    """

    def __init__(self, sock: socket) -> None:
        nonce = os.urandom(frames.NONCE_SIZE)
        sock.setblocking(False)
        self._sock = sock
        self._decoder = frames.Decoder(frames.MAGIC + nonce)
        self._out: list[bytes | memoryview] = [frames.MAGIC + nonce + frames.pack_hello()]
        self._sending = allocate_lock()
        self._receiving = allocate_lock()
        self._starting = allocate_lock()
        self._controlling = allocate_lock()
        self._sessions: dict[int, Session] = {}
        self._events: list[int] = []
        self._control = Session(self, 0)
        self._next_id = 0
        self.failure: AgentError | None = None
        self.version = (0, 0)
        self.flush()

    def run(
        self,
        argv: list[str] | str,
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        tty: tuple[int, int] | None = None,
        env: dict[str, str] | None = None,
        cwd: str | None = None,
        poweroff: bool = False,
        signals: int = -1,
    ) -> int:
        """Run a command and return its status as shells count, 128 + N for signal N.

        ``None`` is /dev/null. ``tty`` is (columns, rows) of a terminal to run it on. With
        ``poweroff`` the guest ends its machine after the command. ``signals`` is Session.pump()'s.
        Raises AgentError when the agent goes away first, or cannot start the command.
        """
        session = self.start(
            argv, stdin=stdin is not None, tty=tty, env=env, cwd=cwd, poweroff=poweroff
        )
        return session.pump(stdin, stdout, stderr, signals)

    def capture(
        self,
        argv: list[str] | str,
        *,
        data: bytes = b"",
        env: dict[str, str] | None = None,
        cwd: str | None = None,
        poweroff: bool = False,
    ) -> tuple[int, bytes, bytes]:
        """Run a command with ``data`` as its input; return (status, stdout, stderr)."""
        session = self.start(argv, stdin=bool(data), env=env, cwd=cwd, poweroff=poweroff)
        out, err = bytearray(), bytearray()
        status = session.pump(data or None, out, err)
        return status, bytes(out), bytes(err)

    def start(
        self,
        argv: list[str] | str,
        *,
        stdin: bool = True,
        tty: tuple[int, int] | None = None,
        env: dict[str, str] | None = None,
        cwd: str | None = None,
        poweroff: bool = False,
    ) -> Session:
        """Start a command and return its session; ``pump`` or ``wait`` must follow."""
        flags = (0 if stdin else frames.RUN_NO_STDIN) | (frames.RUN_POWEROFF if poweroff else 0)
        with self._starting:
            session = Session(self, self._free_id())
            window = (session.WINDOW, session.WINDOW)
            frame = frames.pack_run(
                session.id, argv, flags=flags, window=window, tty=tty, env=env, cwd=cwd
            )
            self._sessions[session.id] = session
        self.send(frame)
        return session

    def ping(self, timeout: float) -> float:
        """Return how many seconds the agent took to answer; raises AgentError after ``timeout``."""
        started = time.monotonic()
        token = os.urandom(8)
        self._ask(frames.pack(frames.PING, 0, token), frames.PONG, timeout)
        return time.monotonic() - started

    def relay(self, request: bytes, timeout: float) -> bytes:
        """Ask the relay between here and the agent something of its own."""
        return self._ask(frames.pack(frames.RELAY, 0, request), frames.RELAY, timeout)

    def power(self, how: int) -> None:
        """Ask the guest to end its machine: frames.POWER_OFF, POWER_REBOOT or POWER_HALT."""
        self.send(frames.pack(frames.POWER, 0, bytes([how])))

    def hung_up(self) -> bool:
        """Tell whether the stream has ended, whatever of it has not been read yet."""
        poll = select.poll()
        poll.register(self._sock.fileno(), select.POLLRDHUP)
        return bool(poll.poll(0))

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close the connection; the agent ends what still runs for it."""
        self._fail("the connection is closed")
        self._sock.close()
        self._control.close()
        while self._events:
            os.close(self._events.pop())

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ---- What sessions need -----------------------------------------------------------

    def send(self, frame: bytes) -> None:
        """Queue a frame and send what the socket takes; safe in a signal handler."""
        self._out.append(frame)
        self.flush()

    @property
    def unsent(self) -> bool:
        """Tell whether something waits for the socket to become writable."""
        return bool(self._out)

    def flush(self) -> None:
        """Send what is queued, as far as that does not block."""
        while self._out and self.failure is None:
            # Never waits: the holder, perhaps this thread under a signal handler, looks again.
            if not self._sending.acquire(False):
                return
            try:
                blocked = self._send_some()
            finally:
                self._sending.release()
            if blocked:
                self._wake_all()
                return

    def _send_some(self) -> bool:
        while self._out:
            head = self._out[0]
            try:
                sent = self._sock.send(head)
            except BlockingIOError:
                return True
            except OSError:
                # What the agent said before it went may still be there to be read.
                self._out.clear()
                return False
            if sent == len(head):
                self._out.pop(0)
            else:
                self._out[0] = memoryview(head)[sent:]
        return False

    def receive(self, current: Session) -> None:
        """Read the socket and hand out the frames, unless another thread is doing so."""
        if not self._receiving.acquire(False):
            return
        try:
            try:
                data = self._sock.recv(_RECEIVE)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._fail("the agent has gone away")
                return
            for kind, stream, session, payload in self._decoder.feed(data):
                self._dispatch(kind, stream, session, payload, current)
        except AgentError as error:
            self._fail(error.message)
        finally:
            self._receiving.release()

    def forget(self, session: Session) -> None:
        """Drop a session that has ended."""
        self._sessions.pop(session.id, None)

    def borrow_event(self) -> int:
        """Return an eventfd for a session to be woken by.

        They are never closed before the connection is: a late wake-up does no harm then.
        """
        try:
            return self._events.pop()
        except IndexError:
            return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def return_event(self, fd: int) -> None:
        """Take an eventfd back, to be used again."""
        self._events.append(fd)

    # ---- Inside -------------------------------------------------------------------------

    def _free_id(self) -> int:
        while True:
            self._next_id = self._next_id % 65535 + 1
            if self._next_id not in self._sessions:
                return self._next_id

    def _dispatch(
        self, kind: int, stream: int, number: int, payload: bytes, current: Session
    ) -> None:
        if number == 0:
            session: Session | None = self._control
            if kind == frames.HELLO:
                self.version = self._check_hello(payload)
                return
            if kind == frames.ERROR:
                self._fail(payload[4:].decode("utf-8", "replace"))
                return
        else:
            session = self._sessions.get(number)
        if session is not None:
            session.inbox(kind, stream, payload)
            if session is not current:
                session.wake()

    def _check_hello(self, payload: bytes) -> tuple[int, int]:
        major, minor, _ = frames.unpack_hello(payload)
        if major != frames.VERSION_MAJOR:
            raise AgentError(f"the agent speaks version {major} of its protocol, not 1")
        return major, minor

    def _fail(self, message: str) -> None:
        if self.failure is None:
            self.failure = AgentError(message)
        self._wake_all()

    def _wake_all(self) -> None:
        for session in [*self._sessions.values(), self._control]:
            session.wake()

    def _ask(self, frame: bytes, kind: int, timeout: float) -> bytes:
        deadline = time.monotonic() + timeout
        with self._controlling:
            self._control.answers.clear()
            self.send(frame)
            while True:
                for answer, payload in self._control.answers:
                    if answer == kind:
                        return payload
                left = deadline - time.monotonic()
                if self.failure is not None:
                    raise self.failure
                if left <= 0:
                    raise AgentError(f"the agent did not answer within {timeout:g} s")
                self._control.poll_once(select.poll(), left)
