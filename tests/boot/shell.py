"""Commands in a guest: what they say, and waiting until they say it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import kvmpv


def text(domain: kvmpv.Domain, command: str) -> str:
    """Run a command that is to succeed, and say nothing on its stderr; return what it said."""
    done = domain.exec(command)
    assert (done.status, done.stderr) == (0, b""), (command, done)
    return str(done).strip()


def wait_for(domain: kvmpv.Domain, command: str, wanted: str, seconds: float = 30) -> None:
    """Run a command again and again until it says what is wanted, whatever its status."""
    deadline = time.monotonic() + seconds
    while (said := str(domain.exec(command)).strip()) != wanted:
        assert time.monotonic() < deadline, f"{command!r} says {said!r}, never {wanted!r}"
        time.sleep(0.2)
