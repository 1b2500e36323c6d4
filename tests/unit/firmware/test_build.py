"""What the compiler makes of the firmware: the same each time, where it shall lie, and plain."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# What an emulator of kernel mode stumbles over, or what would need set-up that the guest lacks.
STUMBLES = re.compile(
    r"\b(int3|xrstor\w*|xsave\w*|clac|stac|cmpxchg16b|m?wait|monitor|rep (stos|movs)\w*"
    r"|v?mov[au]ps|movq.*%xmm|%[xyz]mm\d|f(ld|st)\w*)\b"
)


def build(folder: Path) -> dict[str, bytes]:
    subprocess.run(["make", "-s", "-C", str(ROOT / "firmware"), f"O={folder}"], check=True)
    return {name: (folder / name).read_bytes() for name in ("refguest", "first")}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("firmware")
    build(folder)
    return folder


def printed(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def test_same_sources_give_the_same_bytes(built: Path, tmp_path: Path) -> None:
    again = build(tmp_path)
    assert again == {name: (built / name).read_bytes() for name in again}


@pytest.mark.parametrize("name", ["refguest", "first"])
def test_guest_is_a_static_elf_at_one_mib(built: Path, name: str) -> None:
    headers = printed("readelf", "-hlW", str(built / name))
    assert "EXEC (Executable file)" in headers
    assert "Entry point address:               0x100000" in headers
    assert "INTERP" not in headers
    loads = re.findall(r"LOAD\s+\S+ (0x\w+) (0x\w+)", headers)
    assert loads
    assert all(virtual == physical for virtual, physical in loads)


def test_guest_has_no_instruction_that_emulators_stumble_over(built: Path) -> None:
    text = printed("objdump", "-d", "--no-show-raw-insn", str(built / "refguest"))
    assert [line for line in text.splitlines() if STUMBLES.search(line)] == []


def test_every_command_is_in_the_readme() -> None:
    source = (ROOT / "firmware/start.c").read_text()
    table = (ROOT / "firmware/README.md").read_text()
    commands = re.findall(r'^\t\{ "(\w+)", \w+, ([01]) \},$', source, re.MULTILINE)
    assert commands
    for name, in_all in commands:
        assert re.search(
            rf"^\|.*`{name}`{re.escape(' *') if in_all == '1' else '[ ,]'}", table, re.M
        )
