"""The control socket: one line in, one line out.

    status | stats | pause | resume | poweroff | reboot | sysrq KEY | vcpus N | window COLUMNS ROWS
    | kill | attach PORT

The answer is ``ok`` with ``key=value`` words, or ``error`` with a text. docs/control.md says more.
"""

from __future__ import annotations

import _socket

from kvmpv import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from kvmpv.vmm.main import Domain

LINE_MAX: Final = 4096
CONNECTIONS_MAX: Final = 16


class Control:
    """Serve the control socket of one domain."""

    def __init__(self, domain: Domain, fd: int) -> None:
        self._domain = domain
        self._listener = _socket.socket(fileno=fd)
        self._listener.setblocking(False)
        self._connections: dict[int, tuple[_socket.socket, bytearray]] = {}
        self._verbs: dict[str, Callable[[list[str]], str]] = {
            "status": self._status,
            "stats": self._stats,
            "pause": self._pause,
            "resume": self._resume,
            "poweroff": lambda _: self._ask(abi.REQUEST_POWEROFF),
            "reboot": lambda _: self._ask(abi.REQUEST_REBOOT),
            "sysrq": self._sysrq,
            "vcpus": self._vcpus,
            "window": self._window,
            "kill": self._kill,
            "attach": self._attach,
        }
        self._asking = -1  # the descriptor of the connection whose line is being answered
        domain.watch(fd, self._accept)

    def _accept(self, _events: int) -> None:
        try:
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]
        except OSError:
            return
        connection = _socket.socket(fileno=fd)
        if len(self._connections) >= CONNECTIONS_MAX:
            connection.close()
            return
        connection.setblocking(False)
        self._connections[fd] = (connection, bytearray())
        self._domain.watch(fd, lambda _: self._receive(fd))

    def _receive(self, fd: int) -> None:
        connection, received = self._connections[fd]
        try:
            data = connection.recv(LINE_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        received += data
        if not data:
            self._drop(fd)
            return
        *lines, rest = bytes(received).split(b"\n")
        received[:] = rest
        self._asking = fd
        answers = [self._answer(line.decode("utf-8", "replace")) + "\n" for line in lines]
        answer = "".join(answers).encode()
        if fd not in self._connections:
            return  # it is a port's stream now
        try:
            sent = connection.send(answer) if answer else 0
        except OSError:
            sent = 0
        # It does not read: half an answer would be a wrong one. Or it does not end its line.
        if sent < len(answer) or len(rest) > LINE_MAX:
            self._drop(fd)

    def _drop(self, fd: int) -> None:
        connection, _ = self._connections.pop(fd)
        self._domain.unwatch(fd)
        connection.close()

    def _answer(self, line: str) -> str:
        verb, *words = line.split()[:8] or [""]
        action = self._verbs.get(verb)
        if action is None:
            return f"error unknown verb {verb!r}"
        try:
            return action(words)
        except (ValueError, IndexError, TypeError):
            return f"error {verb}: wrong arguments"

    # ---- verbs

    def _status(self, _words: list[str]) -> str:
        machine = self._domain.machine
        state = "paused" if machine.paused else "running"
        up = sum(processor.up for processor in machine.processors.values())
        return f"ok state={state} vcpus={up} boots={self._domain.boots}"

    def _stats(self, _words: list[str]) -> str:
        # KVM opens a vCPU's statistics only while that is not in the guest.
        machine = self._domain.machine
        was_paused = machine.paused
        machine.pause()
        facts = self._domain.counters()
        if not was_paused:
            machine.resume()
        return "ok " + " ".join(f"{key}={value}" for key, value in facts.items())

    def _pause(self, _words: list[str]) -> str:
        self._domain.machine.pause()
        return "ok"

    def _resume(self, _words: list[str]) -> str:
        self._domain.machine.resume()
        return "ok"

    def _ask(self, request: int, **values: int) -> str:
        return "ok" if self._domain.ask(request, **values) else "ok heard=no"

    def _sysrq(self, words: list[str]) -> str:
        key = words[0]
        if len(key) != 1 or not key.isascii():
            return "error sysrq: one ASCII character"
        return self._ask(abi.REQUEST_SYSRQ, sysrq=ord(key))

    def _vcpus(self, words: list[str]) -> str:
        count = int(words[0])
        if not 1 <= count <= self._domain.orders.max_vcpus:
            return f"error vcpus: 1 to {self._domain.orders.max_vcpus} are possible"
        return self._ask(abi.REQUEST_VCPUS, vcpus=(1 << count) - 1)

    def _window(self, words: list[str]) -> str:
        columns, rows = int(words[0]), int(words[1])
        if not (0 <= columns < 65536 and 0 <= rows < 65536):
            return "error window: 0 to 65535"
        self._domain.guest_ports.set_window(abi.PORT_TERMINAL, columns, rows)
        return "ok"

    def _attach(self, words: list[str]) -> str:
        """Make the connection that asks the stream of a console port, in place of the old one."""
        number = int(words[0])
        if not 0 <= number < abi.MAX_PORTS:
            return f"error attach: ports are 0 to {abi.MAX_PORTS - 1}"
        connection, _ = self._connections.pop(self._asking)
        self._domain.unwatch(self._asking)
        try:
            connection.send(b"ok\n")
        except OSError:
            return ""
        self._domain.attach(number, connection)
        return ""

    def _kill(self, _words: list[str]) -> str:
        self._domain.kill("the domain was destroyed")
        return "ok"
