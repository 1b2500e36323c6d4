"""``kvmpv doctor``: what this host can do, and how to mend what it cannot."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from kvmpv.toolstack import host
from kvmpv.toolstack.finding import Finding

HELP = """Say what this host can do for guests, measured by running probe guests.

Examples:

    kvmpv doctor

    kvmpv doctor --fix

    kvmpv doctor --json

Exit status: 0 when Linux guests run here, 1 when they do not.
"""


def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Mend what can be mended safely.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Show the findings about this host."""
    findings = host.findings()
    done = host.mend(findings) if fix else []
    if done:
        findings = host.findings()
    linux = host.can_run_linux(findings)
    if as_json:
        rows = [
            {key: getattr(finding, key) for key in ("name", "good", "needed", "seen", "remedy")}
            for finding in findings
        ]
        print(json.dumps({"linux": linux, "findings": rows, "fixed": done}))
    else:
        _show(findings, done, linux)
    raise typer.Exit(0 if linux else 1)


def _show(findings: list[Finding], done: list[str], linux: bool) -> None:
    table = Table("", "what", "seen", "remedy", box=None, pad_edge=False)
    for finding in findings:
        mark = (
            "[green]ok[/]" if finding.good else "[red]no[/]" if finding.needed else "[yellow]--[/]"
        )
        table.add_row(mark, finding.name, finding.seen, finding.remedy)
    console = Console()
    for line in done:
        console.print(line)
    console.print(table)
    console.print("Linux guests run here." if linux else "Linux guests do not run here.")
