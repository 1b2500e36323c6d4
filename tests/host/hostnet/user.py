"""A program that uses a network until its input ends: ... NAME SPEC [UID to be]"""

from __future__ import annotations

import os
import sys

from kvmpv import hostnet
from kvmpv.errors import KvmpvError
from kvmpv.hostnet import filters, nat

IMPORTED = (filters, nat)  # while the checkout can be read


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    name, text, *user = sys.argv[1:]
    if user:
        os.setgroups([])
        os.setgid(int(user[0]))
        os.setuid(int(user[0]))
    spec = hostnet.parse(text)
    try:
        hostnet.plan(name, [spec])
        with hostnet.attach(name, 0, spec) as card:
            say(f"{card.tap} {card.mac} {card.address or '-'}")
            sys.stdin.read()
    except KvmpvError as error:
        say(f"error {error}")
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
