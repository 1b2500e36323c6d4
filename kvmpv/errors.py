"""The errors that kvmpv raises.

    KvmpvError            safe to show to a user: one line, and a hint
    ├── BadInput          the user asked for something that cannot be (exit status 2)
    ├── HostError         this host lacks or refuses something (exit status 2)
    │   └── VhostUserError  a device's other side broke the protocol, or is gone
    ├── KvmError          an ioctl on /dev/kvm failed; carries errno
    ├── GuestCrash        the guest panicked, or its processor state is beyond going on
    ├── AgentError        the agent in a guest or box is gone, or breaks its protocol
    └── LostBox           the dev box stopped beating: no verdict on what ran in it

This module is imported by the VMM before it locks itself in: it imports nothing.
"""


class KvmpvError(Exception):
    """Report something to the user in one line; ``hint`` is the remedy."""

    exit_status = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class BadInput(KvmpvError):
    """Say what is wrong with what the user gave, and how to mend it."""

    exit_status = 2


class HostError(KvmpvError):
    """Say what this host lacks or refuses, and how to mend it."""

    exit_status = 2


class VhostUserError(HostError):
    """Report a vhost-user peer that broke the protocol; ``gone`` when it has hung up."""

    def __init__(self, message: str, *, hint: str = "", gone: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.gone = gone


class KvmError(KvmpvError):
    """Report an ioctl that failed; ``errno`` is the kernel's, positive."""

    def __init__(self, what: str, errno: int, *, hint: str = "") -> None:
        super().__init__(f"{what} failed with errno {errno}", hint=hint)
        self.errno = errno


class GuestCrash(KvmpvError):
    """Report a guest's end by its own fault; ``report`` is the path of the full report."""

    exit_status = 125

    def __init__(self, message: str, *, report: str = "") -> None:
        super().__init__(message, hint=f"full report: {report}" if report else "")
        self.report = report


class AgentError(KvmpvError):
    """Report an agent that is gone, or that does not speak its protocol."""

    exit_status = 123  # as for whatever else fails a domain without its fault


class LostBox(KvmpvError):
    """Report a dev box that stopped beating, with the path of its console's log."""

    exit_status = 126

    def __init__(self, message: str, *, console: str = "") -> None:
        super().__init__(message, hint=f"its console: {console}" if console else "")
        self.console = console


def printable(text: str) -> str:
    """Return a text as one line without control characters: a guest, or a path, may have any."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
