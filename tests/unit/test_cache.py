"""The one rule for where things are kept, held by all who ask."""

from __future__ import annotations

import pytest

from kvmpv import cache
from kvmpv.images import keyed
from kvmpv.toolstack import defaults


@pytest.mark.parametrize(
    ("given", "folder"),
    [("/kept", "/kept/kvmpv"), ("kept", "/nobody/.cache/kvmpv"), ("", "/nobody/.cache/kvmpv")],
)
def test_builders_and_who_boots_agree(
    given: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/nobody")
    monkeypatch.setenv("XDG_CACHE_HOME", given)
    assert [cache.folder(), str(keyed.cache()), defaults.cache()] == [folder] * 3
