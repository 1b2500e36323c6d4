"""Imports point down: each package knows only what lies below it."""

from __future__ import annotations

import ast

import pytest

from tests.style import tree

# errors may be imported by all. vmm and dom0 are started as processes: nobody may import them.
LAYERS: dict[str, set[str]] = {
    "errors": set(),
    "abi": set(),
    "kvm": set(),
    "memory": set(),
    "vhostuser": set(),
    "virtio": {"abi", "memory", "vhostuser"},
    "machine": {"kvm", "memory", "abi"},
    "hypercall": {"abi", "memory", "virtio"},
    "vmm": {"machine", "hypercall", "virtio", "vhostuser", "kvm", "memory", "abi"},
    "dataplane": set(),
    "hostnet": set(),
    "hostdev": set(),
    "dom0": {"dataplane", "virtio", "vhostuser", "hostnet"},
    "agent": set(),
    "toolstack": {"agent", "abi", "memory", "hostnet", "hostdev"},
    "images": {"agent", "hostdev"},
    "devbox": {"images", "agent"},
    "cli": {"toolstack", "devbox", "images", "agent", "hostnet", "hostdev"},
    # The package itself offers the Python interface.
    "": {"toolstack"},
}


def layer_of(module: str) -> str:
    """Name the layer that a module of the package belongs to; the package itself is ""."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LAYERS else ""


def breaches() -> list[str]:
    """Say which imports point up or sideways."""
    found = []
    for path in tree.below("kvmpv"):
        own = layer_of(tree.module_name(path))
        for line, target in tree.imported(path):
            if target.partition(".")[0] != "kvmpv":
                continue
            other = layer_of(target)
            allowed = LAYERS[own] | {own, "errors", ""}
            if other not in allowed:
                found.append(f"{tree.name(path)}:{line}: {own or 'kvmpv'} imports {other}")
    return found


def test_imports_point_down() -> None:
    assert breaches() == []


def test_every_package_has_its_layer() -> None:
    packages = {path.parent.name for path in tree.ROOT.glob("kvmpv/*/__init__.py")}
    assert packages <= set(LAYERS)


def test_layers_have_no_circle() -> None:
    done: set[str] = set()
    while ready := {own for own, below in LAYERS.items() if own not in done and below <= done}:
        done |= ready
    assert done == set(LAYERS)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import kvmpv.kvm.vm", ["kvmpv.kvm.vm"]),
        ("from kvmpv import machine", ["kvmpv.machine"]),
        ("from . import vm", ["kvmpv.kvm.vm"]),
        ("from ..abi import HC_VERSION", ["kvmpv.abi.HC_VERSION"]),
        ("if TYPE_CHECKING:\n    from kvmpv.vmm import main", ["kvmpv.vmm.main"]),
    ],
)
def test_imports_are_seen(
    source: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree, "parsed", lambda _path: ast.parse(source))
    assert [target for _, target in tree.imported(tree.ROOT / "kvmpv/kvm/planted.py")] == expected
