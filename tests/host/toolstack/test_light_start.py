"""A domain without devices starts without what devices need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_devices_cost_nothing_where_there_are_none() -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from kvmpv.toolstack import config, domain\n"
        "config.make({'kernel': 'x'})\n"
        "print([name for name in sys.modules if name.startswith('kvmpv.')])\n"
    )
    argv = [sys.executable, "-IS", "-c", program, str(ROOT)]
    found = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert "toolstack.domain" in found
    for name in ("devices", "specs", "disks", "backends", "hostnet"):
        assert name not in found
