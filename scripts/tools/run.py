"""scripts/run [options of kvmpv run]: build what a guest needs, and boot it where Linux can run.

Its guest has a disk and a NAT network, unless the options say otherwise.
"""

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
DEBIAN_PACKAGES = ("fio", "iperf3")


def main(args: list[str]) -> int:
    """Build, choose the place, and become ``kvmpv run``."""
    if {"-h", "--help"} & set(args):
        start([], args)
    try:
        with standard_streams_kept():
            build()
            why = why_not_here()
            prefix, more = plan(args, why)
    except KvmpvError as error:
        print(f"scripts/run: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("scripts/run: interrupted; run it again to go on", file=sys.stderr)
        return 130
    if why:
        print(f"kvmpv: {why}: running in the dev box (scripts/devbox)", file=sys.stderr)
    return start(prefix, [*args, *more])


def start(prefix: list[str], args: list[str]) -> NoReturn:
    """Become ``kvmpv run``, behind what brings it into the dev box."""
    argv = [*prefix, str(KVMPV), "run", *args]
    os.execv(argv[0], argv)


def plan(args: list[str], why: str) -> tuple[list[str], list[str]]:
    """Return what goes before the command and what behind its options; ``why`` it is not for here.

    Where the options cannot be, ``kvmpv run`` is to say so. Raises BadInput.
    """
    from scripts.tools import guest

    asked = guest.Asked(args)
    more = asked.defaults(here=not why)
    if not why:
        return [], more
    prefix = [str(DEVBOX), "run"]
    for path in asked.own_files():
        prefix += ["--through", path]
    return [*prefix, "--"], more


def build() -> None:
    """Bring the guest's kernel and root file system up to date, and make them the defaults."""
    from kvmpv.images import kernel, rootfs

    make_current("vmlinux", Path(kernel.build("pv")))
    make_current("initrd.cpio", Path(rootfs.build()))


def build_debian() -> Path:
    """Bring the Debian image that tests and benchmarks boot up to date; return its path."""
    from kvmpv.images import debian

    image = debian.build(debian.recipe(packages=DEBIAN_PACKAGES), sys.stderr)
    make_current("debian.ext4", image)
    return image


def make_current(name: str, path: Path) -> None:
    """Point the link that ``kvmpv run`` looks for at what was built."""
    folder = cache() / "current"
    folder.mkdir(exist_ok=True)
    link, temporary = folder / name, folder / f".{name}.{os.getpid()}"
    target = os.path.relpath(path, folder)  # so that the cache may be moved
    if link.is_symlink() and os.readlink(link) == target:
        return
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
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
