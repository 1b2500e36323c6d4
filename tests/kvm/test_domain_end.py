"""How a domain's end is told, and that a guest has no say in it beyond its reason."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.kvm import refguest
from tests.kvm.command import IN_BOX, KVMPV, PATIENCE, Command, once
from tests.kvm.refguest import firmware


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    made = Command(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", made.environment["XDG_STATE_HOME"])
    return made


LINE_ENDS = ["\r"] if IN_BOX else ["\r", "\x0b", "\x1c", "\x85", "\u2028"]


@pytest.mark.parametrize("line_end", LINE_ENDS)
def test_reason_cannot_pass_for_another_end(line_end: str, command: Command) -> None:
    reason = f"a{line_end}kind=poweroff{line_end}stat.x=y\x1b[2J"
    end, _ = refguest.run(f"crash reason={reason}")
    assert (end.kind, end.status) == ("crash", 125)
    assert end.message.startswith("a\\")
    assert end.message.isprintable()


def test_crash_costs_one_line_that_names_the_report(command: Command) -> None:
    cmdline = ("--cmdline", "test=crash reason=because")
    ended = command.run("run", "--kernel", firmware("refguest"), "-m", "16M", *cmdline)
    [report] = command.crashes.iterdir()
    assert ended.status == 125
    assert ended.err == f"kvmpv: because (full report: {report})\n"
    assert report.read_text().startswith("kvmpv crash report of domain domain-")
    report.unlink()
    assert command.left(ended.pid) == []


@once
def test_status_is_the_guests_where_standard_streams_are_closed(command: Command) -> None:
    shell = f'exec "{KVMPV}" run --kernel "{firmware("first")}" -m 16M <&- >&- 2>&-'
    done = subprocess.run(
        ["sh", "-c", shell], env=command.environment, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0


@once
def test_output_that_nobody_reads_ends_the_domain(command: Command) -> None:
    cmdline = ("--cmdline", "test=flood n=100000")
    with command.start("run", "--kernel", firmware("refguest"), "-m", "16M", *cmdline) as child:
        assert child.stdout is not None
        child.stdout.close()
        assert child.wait(timeout=PATIENCE) == 1
        assert child.stderr is not None
        assert child.stderr.read() == ""
    assert command.nothing_is_left(child.pid)


# The reference guest has no agent: it ends as one does whose command has ended it.
def test_power_off_under_a_command_is_no_failure(command: Command) -> None:
    arguments = ("--kernel", firmware("refguest"), "-m", "16M", "--cmdline", "test=poweroff")
    ended = command.run("run", *arguments, "--exec", "poweroff")
    assert (ended.status, ended.out, ended.err) == (0, "", "")
    assert command.nothing_is_left(ended.pid)


def test_reboot_under_a_command_is_told(command: Command) -> None:
    arguments = ("--kernel", firmware("refguest"), "-m", "16M", "--cmdline", "test=again")
    ended = command.run("run", *arguments, "--exec", "reboot")
    assert (ended.status, ended.out) == (123, "")
    assert ended.err == "kvmpv: the guest rebooted before the command ended\n"
    assert command.nothing_is_left(ended.pid)
