"""Where this machine's apt gets Debian from: its own sources, read and told in the deb822 form.

Whatever mirror or proxy the machine uses is used by what kvmpv fetches, too.
"""

from __future__ import annotations

from pathlib import Path

from kvmpv.errors import HostError

SOURCES = Path("/etc/apt")


def archive_source(etc: Path, suite: str) -> str:
    """Return a deb822 stanza for ``suite``: the machine's own Debian archive, other suite."""
    release = suite.split("-")[0]
    for stanza in _stanzas(etc):
        if release in stanza.get("suites", "").split() and "deb" in stanza.get("types", "").split():
            return _text(stanza, suite)
    raise HostError(
        f"no Debian {release} archive among apt's sources", hint=f"see {etc}/sources.list.d"
    )


def guest_sources(etc: Path, suite: str) -> str:
    """Return deb822 stanzas for a guest of ``suite``, its updates and security ones included.

    Only what this machine has sources of is there to be fetched. Raises HostError for a suite of
    which it has none.
    """
    stanzas = [archive_source(etc, suite)]
    for more in (f"{suite}-updates", f"{suite}-security"):
        for stanza in _stanzas(etc):
            if more in stanza.get("suites", "").split():
                stanzas.append(_text(stanza, more))
                break
    return "\n".join(stanzas)


def _stanzas(etc: Path) -> list[dict[str, str]]:
    """Read apt's sources, both the deb822 and the one-line form, as deb822 fields."""
    found = []
    for path in sorted((etc / "sources.list.d").glob("*.sources")):
        for block in path.read_text().split("\n\n"):
            found.append(_deb822(block))
    lists = [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*.list"))]
    for path in lists:
        if path.is_file():
            found += [s for line in path.read_text().splitlines() if (s := _one_line(line))]
    return found


def _text(stanza: dict[str, str], suite: str) -> str:
    chosen = stanza | {"types": "deb", "suites": suite, "components": "main"}
    return "".join(f"{key.title()}: {value}\n" for key, value in chosen.items())


def _deb822(block: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    key = ""
    for line in block.splitlines():
        if line.startswith("#") or not line.strip():
            continue
        if line[0].isspace():
            fields[key] += "\n" + line
        else:
            key, _, value = line.partition(":")
            key = key.lower()
            fields[key] = value.strip()
    return fields


def _one_line(line: str) -> dict[str, str]:
    line = line.split("#")[0].strip()
    if not line.startswith("deb "):
        return {}
    fields = {"types": "deb"}
    rest = line[4:].strip()
    if rest.startswith("["):
        inner, _, rest = rest[1:].partition("]")
        for option in inner.split():
            key, _, value = option.partition("=")
            fields[key.lower()] = value.replace(",", " ")
    words = rest.split()
    return fields | {"uris": words[0], "suites": words[1], "components": " ".join(words[2:])}
