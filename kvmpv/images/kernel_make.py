"""Run what builds a kernel: the same way everywhere, its output in a log, its progress shown."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from kvmpv.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rich.progress import Progress

PACKAGES = {
    "bc": "bc",
    "bison": "bison",
    "flex": "flex",
    "gcc": "gcc",
    "gzip": "gzip",
    "ld": "binutils",
    "make": "make",
    "patch": "patch",
    "perl": "perl",
    "tar": "tar",
    "xz": "xz-utils",
}
HEADERS = {"gelf.h": "libelf-dev", "stdio.h": "libc6-dev"}
INCLUDE = Path("/usr/include")

# Nothing of this machine, this user or this hour goes into the image.
_FIXED = {
    "KBUILD_BUILD_HOST": "kvmpv",
    "KBUILD_BUILD_TIMESTAMP": "Sun Nov 22 00:00:00 UTC 2026",
    "KBUILD_BUILD_USER": "kvmpv",
    "KBUILD_BUILD_VERSION": "1",
    "LC_ALL": "C",
    "LOCALVERSION": "",
}


def check_packages() -> None:
    """Raise HostError with the names of the Debian packages that a build needs and has not."""
    gone = [package for tool, package in PACKAGES.items() if not shutil.which(tool)]
    gone += [package for header, package in HEADERS.items() if not _header(header)]
    if gone:
        names = " ".join(sorted(gone))
        raise HostError(
            "the kernel build lacks Debian packages", hint=f"install them: apt-get install {names}"
        )


def _header(name: str) -> bool:
    return (INCLUDE / name).exists()


def tool_versions() -> str:
    """Return what the compiler and the linker call themselves; raises HostError without them."""
    said = []
    for tool in ("gcc", "ld"):
        if not shutil.which(tool):
            check_packages()
        done = subprocess.run([tool, "--version"], capture_output=True, text=True, check=False)
        said.append(done.stdout.partition("\n")[0])
    return "\n".join(said)


class Job:
    """One build: where its output goes, and who watches."""

    def __init__(self, sink: IO[str], log: Path, out: IO[str]) -> None:
        self.log = log
        self._sink, self._out = sink, out
        self._bar: Progress | None = None
        self._title = ""

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[None]:
        """Show a bar on a terminal, else a line before and one after."""
        self._title, start = title, time.monotonic()
        if self._out.isatty():
            with self._make_bar() as self._bar:
                self._bar.add_task(title, total=total, stage="")
                self._bar.console.print(f"{title}: log in {self.log}", highlight=False)
                yield
            self._bar = None
        else:
            self._print(f"kvmpv: building the {title}, some minutes; log: {self.log}")
            yield
        self._print(f"kvmpv: built the {title} in {time.monotonic() - start:.0f} s")

    def _make_bar(self) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = ("{task.description}", "{task.fields[stage]}")
        return Progress(
            *(TextColumn(column, style="none") for column in columns),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TimeElapsedColumn(),
            console=Console(file=self._out),
        )

    def say(self, stage: str) -> None:
        """Name what is being done."""
        if self._bar:
            self._bar.update(self._bar.task_ids[0], stage=stage)

    def _print(self, text: str) -> None:
        self._out.write(text + "\n")
        self._out.flush()

    def run(self, command: list[str], tree: Path, *, count: bool = False) -> int:
        """Run a command in ``tree`` to its end, its output in the log; return its status."""
        self._sink.write(f"$ {' '.join(command)}\n")
        self._sink.flush()
        child = subprocess.Popen(
            command,
            cwd=tree,
            env={"PATH": os.environ.get("PATH", os.defpath), **_FIXED},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            process_group=0,
        )
        try:
            self._follow(child, count)
            return child.wait()
        finally:
            _end(child)

    def _follow(self, child: subprocess.Popen[str], count: bool) -> None:
        assert child.stdout is not None
        for line in child.stdout:
            self._sink.write(line)
            if count and self._bar and line.startswith("  "):
                self._bar.advance(self._bar.task_ids[0])

    def raise_if_full(self) -> None:
        """Raise HostError if the log tells of a full disk."""
        if "No space left on device" in self.tail(200):
            raise HostError(
                "the disk became full while the kernel was built",
                hint="free some, or set XDG_CACHE_HOME to a folder with room",
            )

    def tail(self, lines: int) -> str:
        """Return the end of the log."""
        self._sink.flush()
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def _end(child: subprocess.Popen[str]) -> None:
    """Leave no compiler behind, whatever ended the build."""
    if child.poll() is None:
        os.killpg(child.pid, 15)
        child.wait()
    if child.stdout:
        child.stdout.close()


def make(tree: Path, job: Job, *targets: str, variables: Mapping[str, str] | None = None) -> None:
    """Run make with all processors; raises HostError with the first error of its output."""
    given = [f"{name}={value}" for name, value in (variables or {}).items()]
    job.say("compiling" if not variables else "configuring")
    jobs = len(os.sched_getaffinity(0)) + 1
    command = ["make", f"-j{jobs}", "ARCH=x86_64", *given, *targets]
    if job.run(command, tree, count=not variables):
        job.raise_if_full()
        errors = [line for line in job.tail(2000).splitlines() if "error" in line.lower()]
        why = errors[0] if errors else "no error message"
        raise HostError(f"the kernel does not build: {why}", hint=f"log: {job.log}")


def strip(elf: Path, into: Path, job: Job) -> None:
    """Write the ELF without symbols; System.map has them."""
    if job.run(["strip", "-s", "-o", str(into), str(elf)], elf.parent):
        job.raise_if_full()
        raise HostError("strip failed", hint=f"log: {job.log}")
