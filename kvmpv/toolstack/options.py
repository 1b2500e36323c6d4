"""The options of a domain: one definition for the command line, a file and the Python interface."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final


class Option:
    """One option. ``kind`` is str, int, bool, "size" (bytes, with K, M, G or T behind) or "list".

    A list is given by repeating the option, whose ``flag`` is the singular of its name.
    """

    __slots__ = ("default", "help", "kind", "metavar", "name", "short")

    def __init__(
        self, name: str, kind: object, default: object, metavar: str, text: str, short: str = ""
    ) -> None:
        self.name = name
        self.kind = kind
        self.default = default
        self.metavar = metavar
        self.help = text
        self.short = short

    @property
    def flag(self) -> str:
        """The option as a command line has it."""
        name = self.name.removesuffix("s") if self.kind == "list" else self.name
        return "--" + name.replace("_", "-")


OPTIONS: Final = (
    Option("kernel", str, "", "PATH", "An ELF vmlinux or a bzImage. Default: the patched one."),
    Option("initrd", str, "", "PATH", "Initial RAM disk. Default: our shell, if our kernel."),
    Option("memory", "size", 256 << 20, "SIZE", "Guest memory, such as 64M or 2G.", "-m"),
    Option("vcpus", int, 1, "N", "vCPUs at boot.", "-c"),
    Option("max_vcpus", int, 0, "N", "vCPUs that may come online later. Default: as --vcpus."),
    Option("cmdline", str, "", "TEXT", "Kernel command line, behind 'loglevel=4'."),
    Option("exec", str, "", "CMD", "Run CMD as root in the guest, then end with its status."),
    Option("console", str, "", "WHERE", "'terminal', 'none', or a file. Default: none with --exec"),
    Option("disks", "list", (), "PATH[,...]", "A disk: an image, a block device, null:SIZE, ..."),
    Option("nets", "list", (), "KIND[,...]", "A network: nat, bridge=NAME, tap=NAME, user, none."),
    Option("shares", "list", (), "DIR[,...]", "A folder for the guest: DIR[,tag=TAG][,ro]."),
    Option("root", str, "", "WHERE", "The guest's root: a folder, or disk, vda, vda1."),
    Option("vsock", str, "", "PATH[,...]", "Sockets between guest and host, at PATH: [,cid=N]."),
    Option("rng", str, "", "WHAT", "on, off, rate=SIZE (a second). Default: on beside others."),
    Option("name", str, "", "NAME", "Name of the domain; no two that run may share it.", "-n"),
    Option("cpu", str, "host", "MODEL", "'host', then ',-FEATURE' hides, ',+FEATURE' shows."),
    Option("stats", bool, False, "", "Print what the domain cost when it ends."),
    Option("json", bool, False, "", "Print the end and the cost as JSON on stderr."),
    Option("trace", str, "", "PATH", "Write a line for every exit to user space."),
    Option("config", str, "", "FILE", "TOML file with these options; the command line wins."),
)  # fmt: skip

BY_NAME: Final = {option.name: option for option in OPTIONS}
BY_FLAG: Final = {option.flag: option for option in OPTIONS} | {
    option.short: option for option in OPTIONS if option.short
}
