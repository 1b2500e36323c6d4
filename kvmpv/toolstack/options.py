"""The options of a domain: one definition for the command line, a file and the Python interface."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final


class Option:
    """One option. ``kind`` is str, int, bool or "size" (bytes, with K, M, G or T behind)."""

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
        return "--" + self.name.replace("_", "-")


OPTIONS: Final = (
    Option("kernel", str, "", "PATH", "An ELF vmlinux or a bzImage. Default: the patched one."),
    Option("initrd", str, "", "PATH", "Initial RAM disk. Default: our shell, if our kernel."),
    Option("memory", "size", 256 << 20, "SIZE", "Guest memory, such as 64M or 2G.", "-m"),
    Option("vcpus", int, 1, "N", "vCPUs at boot.", "-c"),
    Option("max_vcpus", int, 0, "N", "vCPUs that may come online later. Default: as --vcpus."),
    Option("cmdline", str, "", "TEXT", "Kernel command line, behind 'loglevel=4'."),
    Option("exec", str, "", "CMD", "Run CMD as root in the guest, then end with its status."),
    Option("console", str, "", "WHERE", "'terminal', 'none', or a file. Default: none with --exec"),
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
