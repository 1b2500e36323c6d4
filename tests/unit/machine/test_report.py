"""The crash report: what is made of a guest's words and of the instruction that it ended at."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpv.errors import printable
from kvmpv.machine.report import feature_to_hide


@given(st.text())
def test_message_of_a_guest_stays_one_line_without_control_characters(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1
    shown.encode()


def test_printable_text_stays_as_it_is() -> None:
    assert printable("Größe: 5 µs") == "Größe: 5 µs"
    assert printable("a\nb\x1b[2J\u2028c") == "a\\nb\\x1b[2J\\u2028c"


@pytest.mark.parametrize(
    ("code", "feature"),
    [("0f01cb", "smap"), ("480fc70f", "cx16"), ("480fae07", "xsave"), ("90", ""), ("", "")],
)
def test_stumbled_instruction_names_its_feature(code: str, feature: str) -> None:
    assert feature_to_hide(bytes.fromhex(code)) == feature
