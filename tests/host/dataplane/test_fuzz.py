"""The C of the data plane under junk and the sanitizers, for a bounded time."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
HEADERS = HERE.parents[2] / "kvmpv/dataplane"
SECONDS = 3


def test_junk_reaches_everything_and_breaks_nothing(tmp_path: Path) -> None:
    program = tmp_path / "fuzz"
    flags = ["-O1", "-g", "-std=gnu11", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    sources = ["-Wall", f"-I{HEADERS}", str(HERE / "fuzz.c"), "-o", str(program)]
    subprocess.run(["gcc", *flags, *sources], check=True)
    seed = random.randrange(1 << 32)
    argv = [str(program), str(SECONDS), str(seed)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-4000:]}"
    counts, *faults = done.stdout.splitlines()
    words = dict(word.split("=") for word in counts.split())
    assert all(int(value) > 100 for value in words.values()), counts
    # Each fault that a driver of so little memory can bring about was met.
    unmet = {line.rpartition(":")[0] for line in faults if line.endswith(": 0")}
    assert unmet <= {"sound", "chain too long", "chain too big", "chain is no request"}, done.stdout
