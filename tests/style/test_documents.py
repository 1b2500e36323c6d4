"""What the documents point at is there."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from typer.main import get_group

from kvmpv.cli.app import app
from tests.style import tree
from tests.style.test_layers import LAYERS

if TYPE_CHECKING:
    from pathlib import Path

LINK = re.compile(r"(?<!!)\[[^\]\[]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
SCRIPT = re.compile(r"(?<![\w/.-])((?:scripts|\.ci)/[\w-]+)")
# Code spans that look like a path of the tree.
FOLDERS = "kvmpv|docs|tests|firmware|guest-patches|examples|scripts"
SPAN = re.compile(rf"`((?:{FOLDERS})/[\w./-]*)`")


def documents() -> list[Path]:
    """List every Markdown file of the tree."""
    return [path for path in tree.files() if path.suffix == ".md"]


def headings(path: Path) -> set[str]:
    """Give the anchors of a document's headings."""
    text = FENCE.sub("", path.read_text())
    titles = re.findall(r"^#+ +(.+?) *#*$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def dead(path: Path, target: str) -> bool:
    """Tell whether a link from a document leads nowhere; the web is not asked."""
    if "://" in target or target.startswith("mailto:"):
        return False
    place, _, anchor = target.partition("#")
    file = (path.parent / place) if place else path
    if not file.exists():
        return True
    return bool(anchor) and file.suffix == ".md" and anchor not in headings(file)


def test_links_resolve() -> None:
    found = [
        f"{tree.name(path)}: {target}"
        for path in documents()
        for target in LINK.findall(FENCE.sub("", path.read_text()))
        if dead(path, target)
    ]
    assert found == []


def test_named_scripts_exist() -> None:
    missing = {
        f"{tree.name(path)}: {script}"
        for path in documents()
        for script in SCRIPT.findall(path.read_text())
        if not os.access(tree.ROOT / script, os.X_OK)
    }
    assert missing == set()


def test_named_files_exist() -> None:
    missing = {
        f"{tree.name(path)}: {span}"
        for path in documents()
        for span in SPAN.findall(path.read_text())
        if not (tree.ROOT / span).exists()
    }
    assert missing == set()


def test_documents_that_code_refers_to_exist() -> None:
    missing = {
        f"{tree.name(path)}: {document}"
        for path in tree.files()
        if path.suffix not in (".md", ".patch")
        for document in re.findall(r"\bdocs/[\w./-]+\.md\b", path.read_text())
        if not (tree.ROOT / document).exists()
    }
    assert missing == set()


def test_commands_in_the_readme_exist() -> None:
    fences = "".join(FENCE.findall((tree.ROOT / "README.md").read_text()))
    named = set(re.findall(r"^(?:\$ )?kvmpv (\w+)", fences, re.MULTILINE))
    assert named
    assert named <= set(get_group(app).commands)


def test_example_in_the_readme_is_the_file_that_tests_run() -> None:
    shown = re.findall(r"^```python\n(.*?)^```", (tree.ROOT / "README.md").read_text(), re.M | re.S)
    assert shown == [(tree.ROOT / "examples/vm.py").read_text()]


def test_code_map_has_every_package_with_what_it_may_import() -> None:
    text = (tree.ROOT / "docs/architecture.md").read_text()
    rows = re.findall(r"^\| `kvmpv/(\w+)` \|.*\| ([\w, ]*)\|$", text, re.MULTILINE)
    drawn = {package: set(re.findall(r"\w+", below)) for package, below in rows}
    packages = {name: below for name, below in LAYERS.items() if name not in ("", "errors")}
    assert drawn == packages
