"""kvmpv doctor on this host: what it says of KVM is what a guest meets."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.kvm import refguest
from tests.kvm.command import IN_BOX, Command, once

if TYPE_CHECKING:
    from tests.kvm.command import Ended

WITHOUT_KVM = str(Path(__file__).parent / "without_kvm.py")


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


def findings(ended: Ended) -> tuple[bool, dict[str, dict[str, Any]]]:
    assert ended.err == ""
    answer = json.loads(ended.out)
    assert ended.status == (0 if answer["linux"] else 1)
    return answer["linux"], {finding["name"]: finding for finding in answer["findings"]}


def test_kernel_mode_is_called_emulated_where_kvm_emulates_it(command: Command) -> None:
    end, _ = refguest.run("version", stats=True)
    emulated = end.stats["kvm_insn_emulation"] > 10 * end.stats["kvm_exits"]
    linux, found = findings(command.run("doctor", "--json"))
    assert found["/dev/kvm"]["good"]
    assert found["small guests"]["good"]
    assert linux == (not emulated)
    assert found["Linux guests"]["good"] == (not emulated)
    assert bool(found["Linux guests"]["remedy"]) == emulated
    assert linux or not IN_BOX  # that is what the box is for


@once
def test_host_without_kvm_is_told_so(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "dev"
    folder.mkdir()
    before = (sys.executable, "-IS", WITHOUT_KVM, "absent", str(folder))
    linux, found = findings(command.run("doctor", "--json", before=before))
    assert not linux
    assert not found["/dev/kvm"]["good"]
    assert "No such file" in found["/dev/kvm"]["seen"]
    assert "modprobe" in found["/dev/kvm"]["remedy"]
