"""The control socket: one line in, one line out.

    status | stats | pause | resume | poweroff | reboot | sysrq KEY | vcpus N | window COLUMNS ROWS
    | kill | attach PORT | devices | backend NUMBER | device-add KIND KEY=VALUE...
    | device-remove NUMBER [SECONDS]

The answer is ``ok`` with ``key=value`` words, or ``error`` with a text. docs/control.md says more.
"""

from __future__ import annotations

import _socket
import os
import struct

from kvmpv import abi
from kvmpv.errors import BadInput
from kvmpv.vmm.orders import parse_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from kvmpv.vmm.main import Domain

LINE_MAX: Final = 4096
CONNECTIONS_MAX: Final = 16
WORDS_MAX: Final = 32
FDS_MAX: Final = 4
PATIENCE_MAX: Final = 60  # seconds
ANCILLARY: Final = _socket.CMSG_SPACE(4 * FDS_MAX)


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
            "devices": self._devices,
            "backend": self._backend,
            "device-add": self._device_add,
            "device-remove": self._device_remove,
        }
        self._fds: list[int] = []  # that came with the lines that are being answered
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
        connection, _ = self._connections[fd]
        ancillary: list[tuple[int, int, bytes]] = []
        try:
            flags = _socket.MSG_CMSG_CLOEXEC
            data, ancillary, _, _ = connection.recvmsg(LINE_MAX, ANCILLARY, flags)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._fds = _descriptors(ancillary)
        try:
            self._answer_lines(fd, data)
        finally:
            for surplus in self._fds:
                os.close(surplus)
            self._fds = []

    def _answer_lines(self, fd: int, data: bytes) -> None:
        connection, received = self._connections[fd]
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
        verb, *words = line.split()[:WORDS_MAX] or [""]
        action = self._verbs.get(verb)
        if action is None:
            return f"error unknown verb {verb!r}"
        try:
            return action(words)
        except BadInput as error:
            return f"error {verb}: {error.message}"
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
        self._domain.pause()
        return "ok"

    def _resume(self, _words: list[str]) -> str:
        self._domain.resume()
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

    # ---- devices

    def _devices(self, _words: list[str]) -> str:
        devices = self._domain.devices
        facts = {} if devices is None else devices.describe()
        return " ".join(["ok", *(f"{key}={value}" for key, value in facts.items())])

    def _backend(self, words: list[str]) -> str:
        number = int(words[0])
        socket, devices = self._socket("backend"), self._domain.devices
        if devices is None or not devices.connect(number, socket):
            return f"error backend: there is no device {number}"
        self._fds.pop(0)
        return "ok"

    def _device_add(self, words: list[str]) -> str:
        kind, *options = words
        fd = self._socket("device-add")
        if self._domain.devices is None:
            raise BadInput("a domain that was started with no device takes none later")
        number = self._domain.devices.add_next(kind, parse_options(options), fd)
        self._fds.pop(0)
        return f"ok number={number}"

    def _device_remove(self, words: list[str]) -> str:
        number, patience = int(words[0]), int(words[1]) if len(words) > 1 else 0
        devices = self._domain.devices
        if devices is None or not devices.remove(number, min(max(patience, 0), PATIENCE_MAX)):
            return f"error device-remove: there is no device {number}"
        return "ok"

    def _socket(self, verb: str) -> int:
        """Return the socket that came with the line; who uses it takes it from the list."""
        if not self._fds:
            raise BadInput(f"a socket has to come with {verb}")
        return self._fds[0]


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found: list[int] = []
    for level, kind, value in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            usable = len(value) - len(value) % 4
            found += struct.unpack(f"{usable // 4}i", value[:usable])
    return found
