"""Bad input costs one line that says what is wrong and how to mend it, and leaves nothing behind.

Here is what shows only once a domain starts; tests/host/cli/test_bad_options.py has the options.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kvm.command import IN_BOX, PATIENCE, Command
from tests.kvm.refguest import firmware

ROOT = Path(__file__).parent

# Arguments ({} is the folder with the files below), what is wrong, how to mend it.
CASES = {
    "no-kernel": ("--kernel {}/text", "the kernel is neither an ELF file nor a bzImage",
                  "give a vmlinux or a bzImage: --kernel"),
    "cut-header": ("--kernel {}/cut-40", "the kernel is truncated: it ends within its ELF header",
                   "build or copy it again"),
    "cut-program-headers": ("--kernel {}/cut-100",
                            "the kernel is truncated: it ends within its program headers",
                            "build or copy it again"),
    "cut-segment": ("--kernel {}/cut-9000", "the kernel is truncated: * bytes are missing",
                    "build or copy it again"),
    "32-bit": ("--kernel {}/32-bit", "the kernel is a 32-bit ELF file", "build it for x86-64"),
    "foreign": ("--kernel {}/foreign", "the kernel is for another architecture: ELF machine 183",
                "build it for x86-64"),
    "object": ("--kernel {}/object", "the kernel is an ELF file, but no executable", "use vmlinux"),
    "cut-bzimage": ("--kernel {}/cut-bzimage", "the kernel is truncated: 1024 bytes are missing",
                    "build or copy it again"),
    "old-bzimage": ("--kernel {}/old-bzimage",
                    "the kernel is a bzImage without a 64-bit entry point", "build it for x86-64"),
    "empty-kernel": ("--kernel {}/empty", "the kernel is neither an ELF file nor a bzImage",
                     "give a vmlinux or a bzImage: --kernel"),
    "missing-kernel": ("--kernel {}/nowhere",
                       "cannot open the kernel {}/nowhere: No such file or directory",
                       "give the path of a file: --kernel"),
    "folder": ("--kernel {}", "the kernel {} is a folder", "give the path of a file: --kernel"),
    "pipe": ("--kernel {}/pipe", "the kernel {}/pipe is no plain file",
             "give the path of a file: --kernel"),
    "missing-initrd": ("--kernel {}/good --initrd {}/nowhere",
                       "cannot open the initrd {}/nowhere: No such file or directory",
                       "give the path of a file: --initrd"),
    "empty-initrd": ("--kernel {}/good --initrd {}/empty", "the initrd is empty",
                     "give none, or a cpio archive: --initrd"),
    "big-initrd": ("--kernel {}/good --initrd {}/big -m 16M",
                   "the initrd of 16,777,216 bytes does not fit into memory beside the kernel",
                   "give more: --memory"),
    "little-memory": ("--kernel {}/good -m 2M", "the kernel does not fit into 2 MiB of memory",
                      "it needs more than 3 MiB: --memory"),
    "no-patched-kernel": ("--memory 64M", "there is no patched kernel yet",
                          "build it with scripts/run, or kvmpv kernel build"),
    "cpu-model": ("--kernel {}/good --cpu epyc", "unknown CPU model 'epyc'", "there is 'host'"),
    "cpu-feature": ("--kernel {}/good --cpu host,-smop", "unknown CPU feature '-smop'",
                    "write +NAME or -NAME, with a name from /proc/cpuinfo"),
    "needed-feature": ("--kernel {}/good --cpu host,-lm", "the CPU feature 'lm' cannot be hidden",
                       "guests need it"),
    "console": ("--kernel {}/good --console {}/nowhere/console",
                "cannot write the console to {}/nowhere/console: No such file or directory",
                "give 'terminal', 'none' or a file: --console"),
    "trace": ("--kernel {}/good --trace {}/nowhere/trace",
              "cannot write the trace to {}/nowhere/trace: No such file or directory",
              "give another --trace, or none"),
}  # fmt: skip

# What the box's other KVM has no part in needs no second run there: it is slow.
CHOSEN = ["no-kernel", "big-initrd"] if IN_BOX else list(CASES)
HOSTS = [
    ("absent", "cannot open /dev/kvm: No such file or directory", "scripts/devbox"),
    ("forbidden", "cannot open /dev/kvm: Permission denied", "usermod -aG kvm"),
    ("other", "/dev/kvm: not a KVM device", "kvmpv doctor"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kernels")
    good = Path(firmware("refguest")).read_bytes()
    setup = bytearray(1024 + 512)  # one sector of set-up, one of a kernel that says it has three
    setup[0x1F1] = 1
    struct.pack_into("<I", setup, 0x1F4, 3 * 512 // 16)
    setup[0x1FE:0x200] = b"\x55\xaa"
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, 0x20F)
    old = bytes(setup)
    struct.pack_into("<H", setup, 0x236, 1)
    content = {
        "good": good,
        "text": b"this is no kernel\n" * 300,
        "empty": b"",
        "32-bit": good[:4] + b"\1" + good[5:],
        "foreign": good[:18] + b"\xb7\0" + good[20:],
        "object": good[:16] + b"\1\0" + good[18:],
        "cut-bzimage": bytes(setup),
        "old-bzimage": old,
    }
    content |= {f"cut-{length}": good[:length] for length in (40, 100, 9000)}
    for name, data in content.items():
        (folder / name).write_bytes(data)
    (folder / "big").touch()
    os.truncate(folder / "big", 16 << 20)
    os.mkfifo(folder / "pipe")
    return folder


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


@pytest.mark.parametrize("case", CHOSEN)
def test_domain_that_cannot_start_costs_one_line(case: str, files: Path, command: Command) -> None:
    arguments, what, remedy = (text.replace("{}", str(files)) for text in CASES[case])
    ended = command.run("run", *arguments.split())
    before, _, after = what.partition("*")
    assert ended.err.startswith(f"kvmpv: {before}")
    assert ended.err.endswith(f"{after} ({remedy})\n")
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert command.left(ended.pid) == []


@pytest.mark.parametrize(("kind", "what", "remedy"), HOSTS[:1] if IN_BOX else HOSTS)
def test_host_without_kvm_costs_one_line(
    kind: str, what: str, remedy: str, command: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "dev"
    folder.mkdir()
    before = (sys.executable, "-IS", str(ROOT / "without_kvm.py"), kind, str(folder))
    ended = command.run("run", "--kernel", firmware("first"), before=before)
    assert ended.err.startswith(f"kvmpv: {what} (")
    assert remedy in ended.err
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert command.left(ended.pid) == []


def test_name_is_taken_while_its_domain_runs(command: Command) -> None:
    arguments = ("run", "--kernel", firmware("refguest"), "--cmdline", "test=spin", "-n", "twin")
    children = [command.start(*arguments) for _ in range(2)]
    try:
        loser = _first_to_end(children)
        [winner] = set(children) - {loser}
        out, err = loser.communicate(timeout=PATIENCE)
        hint = "choose another --name, or end it first"
        assert (loser.returncode, out) == (2, "")
        assert err == f"kvmpv: a domain named 'twin' is running ({hint})\n"
        assert [path.name for path in command.domains.iterdir()] == ["twin"]
        winner.terminate()
        winner.communicate(timeout=PATIENCE)
        assert winner.returncode == 130
    finally:
        for child in children:
            child.kill()
    assert command.left(winner.pid) == []


def _first_to_end(children: list[subprocess.Popen[str]]) -> subprocess.Popen[str]:
    ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
    assert ended is not None
    return next(child for child in children if child.pid == ended.si_pid)
