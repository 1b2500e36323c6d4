"""Configuration fragments: what they say, and that nothing of it gets lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmpv.errors import BadInput
from kvmpv.images import kernel, kernel_config


def test_options_are_read() -> None:
    text = '# a comment\n\nCONFIG_A=y\nCONFIG_B="-x"\n# CONFIG_C is not set\nCONFIG_NR=256\n'
    assert kernel_config.parse(text) == {
        "CONFIG_A": "y",
        "CONFIG_B": '"-x"',
        "CONFIG_C": "n",
        "CONFIG_NR": "256",
    }


@pytest.mark.parametrize("line", ["CONFIG_A", "SMP=y", "CONFIG_A = y"])
def test_line_that_is_no_option_is_an_error(line: str) -> None:
    with pytest.raises(BadInput, match="line 2"):
        kernel_config.parse(f"CONFIG_B=y\n{line}\n")


def test_later_fragment_wins(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("CONFIG_A=y\nCONFIG_B=y\n")
    second.write_text("# CONFIG_A is not set\n")
    assert kernel_config.merge([first, second]) == {"CONFIG_A": "n", "CONFIG_B": "y"}


def test_lost_options_are_named() -> None:
    asked = {"CONFIG_KEPT": "y", "CONFIG_GONE": "y", "CONFIG_SET": "n", "CONFIG_OTHER": "1"}
    final = {"CONFIG_KEPT": "y", "CONFIG_SET": "y", "CONFIG_OTHER": "2", "CONFIG_MORE": "y"}
    assert kernel_config.lost(asked, final) == [
        "CONFIG_GONE=y became n",
        "CONFIG_SET=n became y",
        "CONFIG_OTHER=1 became 2",
    ]


def test_unset_option_that_is_nowhere_has_survived() -> None:
    assert kernel_config.lost({"CONFIG_A": "n"}, {}) == []


@pytest.mark.parametrize("variant", kernel.VARIANTS)
def test_our_fragments_ask_for_a_kvmpv_guest(variant: str) -> None:
    names = kernel.VARIANTS[variant][0]
    paths = [kernel.PATCHES / "config" / f"{name}.config" for name in names]
    options = kernel_config.merge(paths)
    for name in ("KVMPV_GUEST", "KVM_GUEST", "HVC_KVMPV", "KVMPV_EXEC", "SMP", "X86_X2APIC"):
        assert options[f"CONFIG_{name}"] == "y", name
