"""scripts/run [options of kvmpv run]: build what a guest needs, and boot it where Linux can run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from kvmpv.errors import KvmpvError
from scripts.tools.place import BUILD, CHECKOUT, cache

if TYPE_CHECKING:
    from collections.abc import Iterator

KVMPV = BUILD / "bin" / "kvmpv"
DEVBOX = CHECKOUT / "scripts" / "devbox"


def main(args: list[str]) -> int:
    """Build, choose the place, and become ``kvmpv run``."""
    if not {"-h", "--help"} & set(args):
        try:
            with standard_streams_kept():
                build()
        except KvmpvError as error:
            print(f"scripts/run: {error}", file=sys.stderr)
            return error.exit_status
        except KeyboardInterrupt:
            print("scripts/run: interrupted; run it again to go on", file=sys.stderr)
            return 130
    return start(args)


def start(args: list[str]) -> NoReturn:
    """Become ``kvmpv run``, here or in the dev box."""
    argv = [str(KVMPV), "run", *args]
    if why := why_not_here():
        print(f"kvmpv: {why}: running in the dev box (scripts/devbox)", file=sys.stderr)
        argv = [str(DEVBOX), "run", "--", *argv]
    os.execv(argv[0], argv)


def build() -> None:
    """Bring the guest's kernel and root file system up to date, and make them the defaults."""
    from kvmpv.images import kernel, rootfs

    make_current("vmlinux", Path(kernel.build("pv")))
    make_current("initrd.cpio", Path(rootfs.build()))


def make_current(name: str, path: Path) -> None:
    """Point the link that ``kvmpv run`` looks for at what was built."""
    folder = cache() / "current"
    folder.mkdir(exist_ok=True)
    link, temporary = folder / name, folder / f".{name}.{os.getpid()}"
    if link.is_symlink() and link.readlink() == path:
        return
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(path)
    temporary.replace(link)


def why_not_here() -> str:
    """Say why this host's KVM cannot run Linux; nothing if it can."""
    if not Path("/dev/kvm").exists():
        return "this host has no /dev/kvm"
    asked = subprocess.run([KVMPV, "doctor", "--json"], stdout=subprocess.PIPE, check=False)
    return "" if json.loads(asked.stdout)["linux"] else "this host's KVM cannot run Linux"


@contextmanager
def standard_streams_kept() -> Iterator[None]:
    """Keep what builds say off stdout, and the guest's input from them."""
    kept = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    sys.stdout.flush()
    os.dup2(null, 0)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        for number, saved in enumerate(kept):
            os.dup2(saved, number)
        for descriptor in (*kept, null):
            os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
