"""The examples run as the README shows them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.kvm.refguest import firmware

ROOT = Path(__file__).parents[2]


def run(*argv: str, example: str = "vm") -> str:
    command = [sys.executable, f"examples/{example}.py", *argv]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


def test_vm_computes_in_the_guest() -> None:
    assert run() == "gcd(1071, 462) = 21\n"
    assert run("270", "192") == "gcd(270, 192) = 6\n"


def test_disk_outlives_its_process() -> None:
    said = run(firmware("refguest"), example="devices").splitlines()
    assert said[:2] == ["device 0: blk, by a worker", "device 1: rng, by a worker"]
    assert said[2:] == [
        "the guest ended by poweroff",
        "and its last block begins with 6b766d707600018f",
    ]


def test_vm_stays_short() -> None:
    code = (ROOT / "examples/vm.py").read_text().partition("def gcd")[2].splitlines()
    assert len([line for line in code if line.strip()]) <= 30


def test_the_documents_python_runs() -> None:
    text = (ROOT / "docs/kvm.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    exec(compile("\n".join(blocks), "docs/kvm.md", "exec"), {})
