"""Programs of others that serve devices: qemu-storage-daemon, virtiofsd, passt."""

from __future__ import annotations

import os
import select
import time

from kvmpv.errors import HostError
from kvmpv.toolstack import processes
from kvmpv.toolstack.backend import READY_PATIENCE, Backend, Place, Slot
from kvmpv.toolstack.rundir import DEVICE

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from typing import Final

    from kvmpv.toolstack.qmp import Monitor

IO_URING_SWITCH: Final = "/proc/sys/kernel/io_uring_disabled"
READ_ONLY: Final = os.path.join(os.path.dirname(__file__), "read_only.py")
SHORT: Final = 0.005
TELLS_SIZE: Final = (8, 1)  # the version from which a resize reaches the front end


class StorageDaemon(Backend):
    """qemu-storage-daemon, for one image of a format that we do not read ourselves."""

    what = "qemu-storage-daemon"

    def __init__(self, place: Place, slots: list[Slot]) -> None:
        super().__init__(place, slots)
        self._program = processes.find("qemu-storage-daemon", "qemu-system-common")
        self._monitor: Monitor | None = None
        device = self.slot.device
        for key in ("serial", "physical", "group"):
            if device.options[key]:
                raise device.error(f"{key} is not possible with this format", "raw images have it")
        if device.flag("snapshot"):
            self._format_overlay()

    @property
    def slot(self) -> Slot:
        """The one device."""
        return self.slots[0]

    def _launch(self) -> None:
        from kvmpv.toolstack.qmp import Monitor

        number = self.slot.number
        listening, connected = self.place.listener(str(number))
        ours, theirs = processes.pair()
        try:
            argv = [self._program, *self._arguments(listening.fileno(), theirs.fileno())]
            fds = [listening.fileno(), theirs.fileno(), *self.slot.fds]
            self.pid = processes.spawn(processes.tied(argv), fds, self.place.log)
        except BaseException:
            connected.close()
            ours.close()
            raise
        finally:
            listening.close()
            theirs.close()
        self.sockets[number] = connected
        self._monitor = Monitor(ours)

    def _arguments(self, listening: int, monitor: int) -> list[str]:
        slot, device, image = self.slot, self.slot.device, self.slot.image
        assert image is not None
        file = "host_device" if image.block else "file"
        path, kind = image.path, image.format
        if slot.overlay >= 0:
            file, path, kind = "file", f"/proc/self/fd/{slot.overlay}", "qcow2"
        readonly = "on" if device.flag("readonly") else "off"
        unmap = "ignore" if device.options["discard"] == "off" else "unmap"
        shared = (
            f"read-only={readonly},discard={unmap}"
            f",cache.direct={'on' if device.options['cache'] == 'none' else 'off'}"
            f",cache.no-flush={'on' if device.options['cache'] == 'unsafe' else 'off'}"
        )
        aio = "io_uring" if _has_io_uring() else "threads"
        node, words = "image", []
        if limits := _limits(device.options):
            node = "limited"
            words = [
                "--object", ",".join(["throttle-group,id=limits", *limits]),
                "--blockdev",
                "driver=throttle,node-name=limited,throttle-group=limits,file=image",
            ]  # fmt: skip
        export = (
            f"vhost-user-blk,id=disk,node-name={node},addr.type=fd,addr.str={listening}"
            f",writable={'off' if readonly == 'on' else 'on'},num-queues={slot.queues}"
            f",logical-block-size={device.number('logical') or 512}"
        )
        return [
            "--blockdev",
            f"driver={file},node-name=file,filename={_quoted(path)},aio={aio},{shared}",
            "--blockdev", f"driver={kind},node-name=image,file=file,{shared}",
            *words,
            "--export", export,
            "--chardev", f"socket,id=monitor,fd={monitor}",
            "--monitor", "chardev=monitor,mode=control",
        ]  # fmt: skip

    def _format_overlay(self) -> None:
        """Make the file that takes what the guest writes one that is backed by the image."""
        image, overlay = self.slot.image, self.slot.overlay
        assert image is not None
        program = processes.find("qemu-img", "qemu-utils")
        words = ["-q", "-f", "qcow2", "-F", image.format, "-b", image.path]
        argv = [program, "create", *words, f"/proc/self/fd/{overlay}"]
        pid = processes.spawn(argv, [overlay], self.place.log)
        _, status = os.waitpid(pid, 0)
        if status:
            reason = processes.last_line(self.place.log, 0)
            raise self.slot.device.error(f"no throw-away disk of it: {reason}", "see qemu-img")

    def wait_ready(self) -> None:
        """Wait for the monitor's greeting: exports are made before it."""
        assert self._monitor is not None
        if not self._monitor.greet(READY_PATIENCE):
            raise self._died()

    def resize(self, size: int) -> None:
        """Give the image another size in bytes; the guest is told."""
        assert self._monitor is not None
        if self._monitor.version < TELLS_SIZE:
            version = ".".join(map(str, self._monitor.version))
            raise self.slot.device.error(
                f"qemu-storage-daemon {version} cannot tell a guest of another size",
                "8.1 can; or resize it while no domain has it: kvmpv disk resize",
            )
        self._monitor.execute("block_resize", **{"node-name": "image", "size": size})

    def _drop(self) -> None:
        super()._drop()
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None


class FileServer(Backend):
    """virtiofsd, for one folder."""

    what = "virtiofsd"

    def __init__(self, place: Place, slots: list[Slot]) -> None:
        super().__init__(place, slots)
        self._program = processes.find("virtiofsd", "qemu-system-common")
        device = self.slot.device
        self._folder = os.path.realpath(device.text)
        if not os.path.isdir(self._folder):
            there = os.path.exists(self._folder)
            what = "is no folder" if there else "there is no such folder"
            raise device.error(what, "give the path of a folder")
        if os.geteuid() != 0:
            raise HostError("virtiofsd shares folders only if root starts it", hint="be root")

    @property
    def slot(self) -> Slot:
        """The one device."""
        return self.slots[0]

    def _launch(self) -> None:
        number = self.slot.number
        listening, connected = self.place.listener(str(number))
        fd = listening.fileno()
        argv = [
            self._program, "-f", f"--fd={fd}",
            "-o", f"source={_escaped(self._folder)}",
            "-o", "cache=auto", "-o", "xattr", "-o", "announce_submounts",
            "-o", "log_level=warn",
        ]  # fmt: skip
        try:
            if self.slot.device.flag("ro"):
                unshare = processes.find("unshare", "util-linux")
                program = processes.python(READ_ONLY, [self._folder])
                argv = [unshare, "--mount", "--propagation", "private", *program, *argv]
            self.pid = processes.spawn(processes.tied(argv), [fd], self.place.log)
        except BaseException:
            connected.close()
            raise
        finally:
            listening.close()
        self.sockets[number] = connected

    def wait_ready(self) -> None:
        """See that it has not ended at once; it takes the connection whenever it is ready."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        if poll.poll(SHORT * 1000):
            raise self._died()


class Passt(Backend):
    """passt, for a network without any right: its own TCP and UDP sockets are the guest's."""

    what = "passt"

    def __init__(self, place: Place, slots: list[Slot]) -> None:
        super().__init__(place, slots)
        self._program = passt()
        [slot] = slots
        assert slot.device.net is not None
        self._net = slot.device.net

    def _launch(self) -> None:
        number = self.slots[0].number
        path = f"{self.place.path}/{DEVICE}{number}.sock"
        argv = [self._program, "--foreground", "--quiet", "--one-off", "--vhost-user", "-s", path]
        for forward in self._net.forwards:
            flag = "-t" if forward.protocol == "tcp" else "-u"
            host = f"{forward.host}/" if forward.host else ""
            argv += [flag, f"{host}{forward.host_port}:{forward.guest_port}"]
        if self._net.mtu:
            argv += ["--mtu", str(self._net.mtu)]
        self.pid = processes.spawn(processes.tied(argv), [], self.place.log)
        try:
            self.sockets[number] = self._connect(path)
        finally:
            processes.unlink(path)

    def _connect(self, path: str) -> _socket.socket:
        """Wait for the socket that passt makes, and connect to it."""
        import _socket

        deadline = time.monotonic() + READY_PATIENCE
        socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        while True:
            try:
                socket.connect(path)
                return socket
            except OSError:
                ended, status = os.waitpid(self.pid, os.WNOHANG)
                if ended or time.monotonic() > deadline:
                    socket.close()
                    self.pid = 0 if ended else self.pid
                    why = processes.describe_status(status) if ended else "does not listen"
                    reason = processes.last_line(self.place.log, self._log_start)
                    raise HostError(f"passt {why}: {reason}", hint="see --net user") from None
                time.sleep(SHORT)


def passt() -> str:
    """Return the path of a passt that speaks vhost-user; raise ``HostError`` if there is none."""
    program = processes.find("passt", "passt")
    reader, writer = os.pipe()
    with os.fdopen(reader, errors="replace") as output:
        try:
            pid = processes.spawn([program, "--help"], [], writer)
        finally:
            os.close(writer)
        text = output.read()
    os.waitpid(pid, 0)
    if "vhost-user" not in text:
        raise HostError(
            "passt on this host is too old: it does not speak vhost-user",
            hint="take a newer one, or --net nat",
        )
    return program


def _has_io_uring() -> bool:
    try:
        with open(IO_URING_SWITCH) as file:
            return file.read().strip() == "0"
    except OSError:
        return True  # a kernel from before it could be switched off


def _limits(options: dict[str, object]) -> list[str]:
    names = {"iops": "iops-total", "bps": "bps-total"}
    words = []
    for key, name in names.items():
        if options[key]:
            words.append(f"x-{name}={options[key]}")
        if options[f"{key}_burst"]:
            words.append(f"x-{name}-max={options[f'{key}_burst']}")
    return words


def _escaped(path: str) -> str:
    """Return a path as libfuse's options take it."""
    return path.replace("\\", "\\\\").replace(",", "\\,")


def _quoted(path: str) -> str:
    return path.replace(",", ",,")
