"""A domain, from outside its process: start it, talk to it, wait for its end."""

from __future__ import annotations

import _thread
import os
import select
import struct

from kvmpv.errors import BadInput, GuestCrash, HostError, KvmpvError
from kvmpv.toolstack import config as configuration
from kvmpv.toolstack import defaults, processes, rundir, sweeper, vmm

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    import signal
    from typing import Final, Self

    from kvmpv.agent.client import Connection
    from kvmpv.toolstack.afterwards import Afterwards
    from kvmpv.toolstack.backends import Backends
    from kvmpv.toolstack.devices import Device
else:
    import _signal as signal  # signal itself imports enum, which takes a third of our start

# Exit statuses of a domain that did not end as its guest meant it to.
CRASHED: Final = 125  # panic or triple fault: the guest's own fault
STUCK: Final = 124  # KVM cannot go on with it
FAILED: Final = 123  # the host, or kvmpv, failed it
KILLED: Final = 130

STATUSES: Final = {
    "poweroff": 0,
    "bad-input": 2,
    "crash": CRASHED,
    "triple-fault": CRASHED,
    "stuck": STUCK,
    "killed": KILLED,
}
SOL_SOCKET: Final = (
    1  # asm-generic/socket.h, and linux/socket.h: _socket would be imported for them
)
SCM_RIGHTS: Final = 1
HANGS: Final = 2.0  # seconds after SIGTERM that a process has to end
SETTLE: Final = 5.0  # seconds that a guest has to follow a request before it is ended


class End:
    """How a domain ended.

    ``kind`` is poweroff, crash, triple-fault, stuck, failed, bug, killed or bad-input, ``message``
    says why in a line, ``status`` is the exit status that it means, ``report`` the path of the
    crash report if there is one, ``stats`` the counters if they were asked for.
    """

    __slots__ = ("kind", "message", "report", "stats", "status")

    def __init__(self, facts: dict[str, str], report: str) -> None:
        self.kind = facts.get("kind", "failed")
        self.message = facts.get("message", "the domain's process died")
        self.status = STATUSES.get(self.kind, FAILED)
        self.report = report
        self.stats = {
            key[len("stat.") :]: int(value)
            for key, value in facts.items()
            if key.startswith("stat.") and value.isdecimal()
        }

    def __repr__(self) -> str:
        return f"End({self.kind}: {self.message})"

    def check(self) -> None:
        """Raise what the end means, unless the guest powered off or was ended by us."""
        if self.kind == "bad-input":
            raise BadInput(self.message)
        if self.status in (CRASHED, STUCK):
            crash = GuestCrash(self.message, report=self.report)
            crash.exit_status = self.status
            raise crash
        if self.status == FAILED:
            hint = f"full report: {self.report}" if self.report else ""
            failed = KvmpvError(self.message, hint=hint)
            failed.exit_status = FAILED
            raise failed


class Completed:
    """What a command in the guest came to: its status, and what it printed."""

    __slots__ = ("status", "stderr", "stdout")

    def __init__(self, status: int, stdout: bytes, stderr: bytes) -> None:
        self.status = status
        self.stdout = stdout
        self.stderr = stderr

    def __str__(self) -> str:
        return self.stdout.decode("utf-8", "replace")

    def __repr__(self) -> str:
        return f"Completed({self.status}, {self.stdout!r}, {self.stderr!r})"


class Domain:
    """Run one domain as a child of this process.

    The keywords are the options of ``kvmpv run`` (see kvmpv/toolstack/options.py). Use it in a
    ``with``: at its end the domain is gone, with everything that belonged to it.

    Raises BadInput for what cannot be, HostError for what this host lacks.
    """

    def __init__(self, **options: object) -> None:
        self.config = configuration.make(options)
        self.config.name = self.config.name or f"domain-{os.getpid()}-{os.urandom(3).hex()}"
        self.pid = 0
        self._terminated = False
        self._sockets: list[_socket.socket] = []
        self._pidfd = -1
        self._agent: Connection | None = None
        self._backends: Backends | None = None
        self._end: End | None = None

    def start(self) -> Self:
        """Start the domain; return as soon as its process runs. One that has ended may start again.

        Raises BadInput for files that cannot be, HostError for what this host lacks.
        """
        config = self.config
        kernel = config.kernel or defaults.kernel()
        initrd = config.initrd or ("" if config.boots_itself else defaults.initrd())
        self._sweeper = sweeper.sweeper(config.name, _sockets(config.devices))
        try:
            self._directory = rundir.RunDirectory(config.name)
        except BaseException:
            self._sweeper.cancel()
            raise
        self._end = self._agent = None
        self._terminated = False
        descriptors = vmm.Descriptors()
        try:
            rundir.sweep()
            self._open(descriptors, kernel, initrd)
            if config.devices:
                self._make_backends().start(descriptors)
            self.pid = vmm.spawn(config, descriptors, config.full_cmdline(defaults.CMDLINE))
            self._pidfd = os.pidfd_open(self.pid)
            if self._backends is not None:
                self._backends.follow(self._pidfd)
        except BaseException as error:
            self._undo()
            if isinstance(error, OSError):
                raise HostError(
                    f"cannot start a domain: {error.strerror}",
                    hint="look at this host's limits: ulimit -a, free, df",
                ) from None
            raise
        finally:
            descriptors.close()
        return self

    def _undo(self) -> None:
        """Take back what a start that failed has made."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0
        self._release()

    def _make_backends(self) -> Backends:
        """Return what the domain's devices are served by; nothing is started yet."""
        if self._backends is None:
            from kvmpv.toolstack.backends import Backends  # late: many domains have none

            self._backends = Backends(self.config, self._directory.path, self._send)
        return self._backends

    def _running_backends(self) -> Backends:
        """Return the same for a domain that runs; raise ``KvmpvError`` for one that does not."""
        if not self.started or self._end is not None:
            raise KvmpvError(f"the domain {self.config.name!r} is gone")
        return self._make_backends()

    def _release(self) -> None:
        """Close all that is open for the domain, end its backends, and remove its folder."""
        if self._backends is not None:
            self._backends.close()
            self._backends = None
        for socket in self._sockets:
            socket.close()
        self._sockets.clear()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        self._directory.close()
        self._sweeper.cancel()

    def _open(self, descriptors: vmm.Descriptors, kernel: str, initrd: str) -> None:
        config = self.config
        descriptors.give("kvm", vmm.open_kvm())
        descriptors.give("kernel", vmm.open_file("kernel", kernel))
        if initrd:
            descriptors.give("initrd", vmm.open_file("initrd", initrd))
        descriptors.give_memory(config.memory)
        for key in ("terminal", "exec", "lifeline"):
            ours, theirs = vmm.socket_pair()
            self._sockets.append(ours)
            setattr(self, f"_{key}", ours)
            descriptors.give(key, theirs)
        descriptors.give("control", self._directory.listen().detach())
        for key in ("end", "report", "log"):
            descriptors.give(key, self._directory.create(key))
        if config.trace:
            descriptors.give("trace", _create(config.trace))

    if TYPE_CHECKING:
        _directory: rundir.RunDirectory
        _sweeper: Afterwards
        _terminal: _socket.socket
        _exec: _socket.socket
        _lifeline: _socket.socket

    # ---- what is connected to the guest

    @property
    def terminal(self) -> _socket.socket:
        """The host's end of the guest's terminal: a stream socket."""
        return self._terminal

    @property
    def exec_port(self) -> _socket.socket:
        """The host's end of the guest's exec channel, when ``exec`` is not used."""
        return self._exec

    @property
    def agent(self) -> Connection:
        """The guest's agent; another one after each reboot."""
        from kvmpv.agent.client import Connection

        if self._agent is None:
            self._agent = Connection(self._exec)
        elif self._agent.failure is not None or self._agent.hung_up():
            self._agent.close()
            self._exec = self.attach(1)
            self._agent = Connection(self._exec)
        return self._agent

    def attach(self, port: int) -> _socket.socket:
        """Return a new stream to a console port (0 terminal, 1 exec), in place of the old one."""
        try:
            stream = self._directory.connect()
            self._sockets.append(stream)
            stream.sendall(b"attach %d\n" % port)
            answer = stream.recv(3)
        except OSError:
            answer = b""
        if answer != b"ok\n":
            raise KvmpvError(f"the domain {self.config.name!r} does not give port {port}")
        return stream

    def exec(self, command: str | list[str], *, stdin: bytes = b"") -> Completed:
        """Run a command as root in the guest and return what it came to.

        Raises GuestCrash, or KvmpvError, when the guest ends before the command does.
        """
        try:
            return Completed(*self.agent.capture(command, data=stdin))
        except KvmpvError:
            if self.wait(timeout=1.0) is not None:
                self.wait_for_end().check()
            raise

    # ---- control

    def control(self, line: str) -> dict[str, str]:
        """Send a line to the control socket; return the words of its answer. See docs/control.md.

        Raises KvmpvError when the domain refuses or is gone.
        """
        return self._send(line, [])

    def _send(self, line: str, fds: list[int]) -> dict[str, str]:
        """Send a line with descriptors beside it."""
        try:
            connection = self._directory.connect()
        except OSError:
            raise KvmpvError(f"the domain {self.config.name!r} is gone") from None
        try:
            rights = [(SOL_SOCKET, SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
            connection.sendmsg([line.encode() + b"\n"], rights)
            answer = b""
            while not answer.endswith(b"\n"):
                data = connection.recv(65536)
                if not data:
                    raise KvmpvError(f"the domain {self.config.name!r} is gone")
                answer += data
        except OSError:
            raise KvmpvError(f"the domain {self.config.name!r} is gone") from None
        finally:
            connection.close()
        verdict, _, text = answer.decode().strip().partition(" ")
        if verdict != "ok":
            raise KvmpvError(text)
        return dict(word.split("=", 1) for word in text.split())

    def pause(self) -> None:
        """Stop all vCPUs between two instructions."""
        self.control("pause")

    def resume(self) -> None:
        """Let the vCPUs run on; the guest's clock is told."""
        self.control("resume")

    def request_poweroff(self) -> None:
        """Ask the guest to power off in good order."""
        self.control("poweroff")

    def request_reboot(self) -> None:
        """Ask the guest to reboot in good order."""
        self.control("reboot")

    def sysrq(self, key: str) -> None:
        """Press a magic SysRq key in the guest."""
        self.control(f"sysrq {key}")

    def set_vcpus(self, count: int) -> None:
        """Ask the guest to bring ``count`` vCPUs online, and the others offline."""
        self.control(f"vcpus {count}")

    def set_window(self, columns: int, rows: int) -> None:
        """Tell the guest's terminal its size."""
        self.control(f"window {columns} {rows}")

    def status(self) -> dict[str, str]:
        """Return the domain's state: ``state`` (running or paused), ``vcpus``, ``boots``."""
        return self.control("status")

    def stats(self) -> dict[str, int]:
        """Return what is counted about the domain and its backends until now, by name."""
        counted = self.control("stats")
        if self._backends is not None:
            counted |= self._backends.stats()
        return {key: int(value) for key, value in counted.items() if value.isdecimal()}

    # ---- devices

    def devices(self) -> list[dict[str, str]]:
        """Return what there is to say of each device, by name: see docs/devices.md."""
        return [] if self._backends is None else self._backends.describe()

    def attach_disk(self, spec: str | dict[str, object]) -> int:
        """Give the running domain a disk, as ``--disk`` has it; return its number."""
        return self._running_backends().add("disk", spec, self._pidfd)

    def attach_net(self, spec: str | dict[str, object]) -> int:
        """Give the running domain a network card, as ``--net`` has it; return its number."""
        return self._running_backends().add("net", spec, self._pidfd)

    def attach_share(self, spec: str | dict[str, object]) -> int:
        """Give the running domain a folder, as ``--share`` has it; return its number."""
        return self._running_backends().add("share", spec, self._pidfd)

    def detach(self, number: int) -> None:
        """Take a device away from the running domain."""
        self._running_backends().remove(number)

    def resize_disk(self, number: int, size: int = 0) -> None:
        """Show the guest a disk's new size: what its image has, or ``size`` bytes, given to it."""
        self._running_backends().resize(number, size)

    def set_limits(self, number: int, **limits: int) -> None:
        """Set a device's limits: iops, iops_burst, bps, bps_burst, pps, pps_burst; 0 is none."""
        self._running_backends().limit(number, limits)

    # ---- the end

    def wait(self, timeout: float | None = None) -> End | None:
        """Wait for the domain's end; return None when ``timeout`` seconds pass before it."""
        if self._end is None:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            if not poll.poll(None if timeout is None else timeout * 1000):
                return None
            os.waitpid(self.pid, 0)
            self._end = self._collect()
        return self._end

    def wait_for_end(self) -> End:
        """Wait for the domain's end, however long it takes."""
        end = self.wait()
        assert end is not None
        return end

    def poweroff(self, timeout: float = SETTLE) -> End:
        """Ask the guest to power off; end it when it has not within ``timeout`` seconds."""
        if self._end is None:
            try:
                self.request_poweroff()
            except KvmpvError:
                pass  # it is ending by itself
        return self.wait(timeout) or self.kill()

    def kill(self) -> End:
        """End the domain at once."""
        if self._end is None:
            self._terminated = True
            self._signal(signal.SIGTERM)
            if self.wait(timeout=HANGS) is None:
                self._signal(signal.SIGKILL)
        return self.wait_for_end()

    @property
    def started(self) -> bool:
        """Whether there is a process to send signals to."""
        return self._pidfd >= 0

    def terminate(self) -> None:
        """End the domain without waiting for it; safe in a signal handler."""
        if self.started:
            self._terminated = True
            self._signal(signal.SIGTERM)
            # Whoever waits now may do so for ever if its process hangs, or has been stopped.
            _thread.start_new_thread(_end_hung, (os.dup(self._pidfd),))

    def _signal(self, number: int) -> None:
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except OSError:
            pass  # it has ended

    def close(self) -> None:
        """End the domain if it still runs, and remove all that belongs to it."""
        if self.pid:
            self.kill()
            self.pid = 0

    def __enter__(self) -> Self:
        return self if self.pid else self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _collect(self) -> End:
        """Read how it ended, keep the crash report, and remove the folder."""
        path = self._directory.path
        # Not splitlines: a guest's reason may hold other characters that it breaks lines at.
        lines = _read(f"{path}/end").split("\n")
        facts = dict(line.split("=", 1) for line in lines if "=" in line)
        report = _read(f"{path}/report")
        if not facts and self._terminated:  # before it could say so, or after it had hung
            facts = {"kind": "killed", "message": "the domain's process was terminated"}
        if not facts or facts.get("kind") == "bug":
            report += f"\nlog of the domain's process:\n{_read(f'{path}/log')}"
            report += _backends_log(f"{path}/device-log")
        kept = rundir.keep_report(self.config.name, report) if report else ""
        if self._backends is not None and (self.config.stats or self.config.json):
            facts |= {f"stat.{key}": value for key, value in self._backends.stats().items()}
        self._release()
        return End(facts, kept)


def _end_hung(pidfd: int) -> None:
    """End a process for good that does not end in time."""
    # Signals are for the main thread, whose waits they are to end.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    if not processes.is_readable(pidfd, HANGS):
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except OSError:
            pass  # it has just ended
    os.close(pidfd)


def _sockets(devices: list[Device]) -> list[str]:
    """Return the paths of the sockets that devices make where their user says."""
    return [device.text for device in devices if device.kind == "vsock"]


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        return file.read()


def _backends_log(path: str) -> str:
    """Return what the backends said, for a report, if there were any."""
    try:
        return f"\nlog of its backends:\n{_read(path)}"
    except OSError:
        return ""


def _create(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    except OSError as error:
        hint = "give another --trace, or none"
        raise BadInput(f"cannot write the trace to {path}: {error.strerror}", hint=hint) from None
