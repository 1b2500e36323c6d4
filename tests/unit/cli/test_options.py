"""``kvmpv run`` goes without typer: both ways take the same options, from the one table."""

from __future__ import annotations

import pytest
import typer.main
from typer.testing import CliRunner

from kvmpv.cli import run as run_module
from kvmpv.cli.app import app
from kvmpv.toolstack.config import parse_arguments
from kvmpv.toolstack.options import OPTIONS, Option


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Give the arguments that typer's ``run`` hands on, instead of running them."""
    seen: list[list[str]] = []

    def run(arguments: list[str]) -> int:
        seen.append(arguments)
        return 7

    monkeypatch.setattr(run_module, "run", run)
    return seen


def forms(option: Option) -> list[list[str]]:
    if option.kind is bool:
        return [[option.flag]]
    short = [[option.short, "value"]] if option.short else []
    return [[option.flag, "value"], [f"{option.flag}=value"], *short]


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_both_ways_take_an_option_in_every_form(option: Option, ran: list[list[str]]) -> None:
    for arguments in forms(option):
        result = CliRunner().invoke(app, ["run", *arguments])
        assert result.exit_code == 7, result.output
        assert parse_arguments(ran.pop()) == parse_arguments(arguments)


def test_typer_knows_no_option_that_the_table_does_not(ran: list[list[str]]) -> None:
    group = typer.main.get_command(app)
    command = group.commands["run"]  # type: ignore[attr-defined]
    known = {name for parameter in command.params for name in parameter.opts}
    table = {option.flag for option in OPTIONS} | {option.short for option in OPTIONS} - {""}
    assert known - {"--help", "-h"} == table
    assert CliRunner().invoke(app, ["run", "--nope"]).exit_code == 2
    assert ran == []


def test_no_two_options_share_a_flag() -> None:
    flags = [flag for option in OPTIONS for flag in (option.flag, option.short) if flag]
    assert len(flags) == len(set(flags))


def test_every_option_says_what_it_is() -> None:
    for option in OPTIONS:
        assert option.help
        assert bool(option.metavar) == (option.kind is not bool)
