"""The budget of minutes holds: every test file has a ceiling, and the ceilings fit their share."""

from __future__ import annotations

from scripts.tools.suite import budget
from tests.style import tree


def test_every_test_file_has_a_ceiling() -> None:
    assert budget.uncovered(budget.load()) == []


def test_ceilings_fit_their_share() -> None:
    assert budget.overdrawn(budget.load()) == []


def test_ceilings_are_for_what_exists() -> None:
    named = [
        name
        for share in budget.load()
        for place in budget.PLACES
        for name in share.ceilings.get(place, {})
    ]
    assert [name for name in named if not (tree.ROOT / name).exists()] == []


def test_every_test_lies_where_a_tier_looks() -> None:
    listed = {name for place in budget.PLACES for name in budget.test_files(place)}
    there = {tree.name(path) for path in tree.below("tests") if path.name.startswith("test_")}
    assert there == listed
