"""Nothing in the tree ties it to one machine, one index of packages or one missing licence."""

from __future__ import annotations

import os
import re
import tomllib

from tests.style import tree

# Written in two halves, so that this file does not break its own rule.
HOST_PATHS = re.compile("|".join(("/ro" + r"ot/\S", "/wo" + "rk/", "/ho" + r"me/\w", "/op" + "t/")))
INDEX_HOSTS = re.compile("|".join(("py" + r"pi\.org", "python" + "hosted", r"deb\.deb" + "ian")))


def lines_with(pattern: re.Pattern[str]) -> list[str]:
    """List the lines of the tree that hold what they must not."""
    return [
        f"{tree.name(path)}:{number}: {line.strip()}"
        for path in tree.files()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]


def test_no_path_of_one_machine() -> None:
    assert lines_with(HOST_PATHS) == []


def test_no_index_of_packages_is_named() -> None:
    assert lines_with(INDEX_HOSTS) == []


def test_lock_pins_every_dependency_and_names_no_place() -> None:
    text = (tree.ROOT / "requirements.lock").read_text()
    assert not re.search(r"^-|://|file:", text, re.MULTILINE)
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))
    project = tomllib.loads((tree.ROOT / "pyproject.toml").read_text())
    asked = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    assert {re.split(r"[<>=]", line)[0] for line in asked} <= set(pinned)
    blocks = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
    assert all("--hash=sha256:" in block for block in blocks)


def test_licences_are_there_in_full() -> None:
    project = tomllib.loads((tree.ROOT / "pyproject.toml").read_text())["project"]
    named = set(project["license"].split(" AND "))
    texts = {path.name.removesuffix(".txt") for path in (tree.ROOT / "LICENSES").iterdir()}
    assert texts == named


def test_licences_that_files_name_are_there() -> None:
    # In two halves, so that this line does not count.
    mark = re.compile("SPDX-License" + r"-Identifier: ([\w. -]+?)(?: \*/)?$", re.MULTILINE)
    files = [path for path in tree.files() if path.suffix != ".patch"]  # Linux has names of its own
    named = {licence for path in files for licence in mark.findall(path.read_text())}
    texts = {path.name.removesuffix(".txt") for path in (tree.ROOT / "LICENSES").iterdir()}
    assert named <= texts


def test_abi_header_may_be_copied_by_any_guest() -> None:
    first = (tree.ROOT / "kvmpv/abi/kvmpv.h").read_text().splitlines()[0]
    assert first == "/* SPDX-License-Identifier: MIT */"


def test_scripts_can_be_run() -> None:
    scripts = tree.directly("scripts", ".ci")
    assert scripts
    assert [tree.name(path) for path in scripts if not os.access(path, os.X_OK)] == []
    assert [tree.name(path) for path in scripts if not path.read_text().startswith("#!")] == []


def test_files_with_imports_for_types_postpone_annotations() -> None:
    code = tree.below("kvmpv", "scripts", "tests", "examples")
    plain = [
        tree.name(path)
        for path in code
        if re.search(r"^if TYPE_CHECKING:", path.read_text(), re.MULTILINE)
        and "from __future__ import annotations" not in path.read_text()
    ]
    assert plain == []
