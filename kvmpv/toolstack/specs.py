"""What follows ``--disk``, ``--net`` and their like: ``SUBJECT[,key=value...]``, or a table of it.

A comma that belongs to a path is written twice.
"""

from __future__ import annotations

import os

from kvmpv.errors import BadInput
from kvmpv.toolstack.config import parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

WORD_CHARACTERS: Final = frozenset(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
)

ESCAPED: Final = frozenset(b"%, \t\r\n")


class Field:
    """One key of a spec. ``kind`` is flag, int, size, word or text, or a tuple of what may stand.

    Numbers lie between ``least`` and ``most``; words and texts have at most ``most`` bytes.
    """

    __slots__ = ("default", "kind", "least", "most")

    def __init__(
        self,
        kind: str | tuple[str, ...],
        default: object = None,
        *,
        least: int = 0,
        most: int = (1 << 63) - 1,
    ) -> None:
        self.kind = kind
        self.default = default
        self.least = least
        self.most = most


class Grammar:
    """What a device's option takes: the kinds of subject, and the keys behind it.

    ``subjects`` names those that are written ``name=VALUE``, ``name:VALUE`` or ``name`` alone, by
    the sign that follows the name; ``bare`` is the one that a text without a name means.
    """

    __slots__ = ("bare", "example", "fields", "flag", "subjects")

    def __init__(
        self,
        flag: str,
        bare: str,
        subjects: Mapping[str, str],
        fields: Mapping[str, Field],
        example: str,
    ) -> None:
        self.flag = flag
        self.example = f"such as {flag} {example}"
        self.bare = bare
        self.subjects = subjects
        self.fields = fields

    def parse(self, given: object) -> Spec:
        """Return the spec that a text or a table means; raise ``BadInput`` for what cannot be."""
        if isinstance(given, str | os.PathLike):
            return self._parse_text(os.fsdecode(given))
        if isinstance(given, dict):
            return self._parse_table(given)
        raise BadInput(f"{self.flag} wants a text or a table, not {given!r}", hint=self.example)

    def _parse_text(self, text: str) -> Spec:
        subject, *words = split(text)
        spec = Spec(self, *self._subject(subject))
        for word in words:
            key, equals, value = word.partition("=")
            self._set(spec, key, value if equals else True)
        return spec

    def _subject(self, text: str) -> tuple[str, str]:
        for name, sign in self.subjects.items():
            if not sign and text == name:
                return name, ""
            if sign and text.startswith(name + sign):
                return name, text[len(name) + len(sign) :]
        return self.bare, text

    def _parse_table(self, table: Mapping[object, object]) -> Spec:
        rest = dict(table)
        names = list(self.subjects)
        chosen = [name for name in names if name in rest]
        if "kind" in rest and not chosen:  # kind = "nat"
            spec = Spec(self, *self._subject(str(rest.pop("kind"))))
        elif len(chosen) == 1:
            value = rest.pop(chosen[0])
            spec = Spec(self, chosen[0], "" if value is True else os.fsdecode(str(value)))
        else:
            raise BadInput(
                f"{self.flag}: a table names one of {', '.join(names)}, and this names"
                f" {' and '.join(chosen) or 'none'}",
                hint=self.example,
            )
        for key, value in rest.items():
            self._set(spec, str(key), value)
        return spec

    def _set(self, spec: Spec, key: str, value: object) -> None:
        key = key.replace("-", "_")
        field = self.fields.get(key)
        if field is None:
            raise spec.error(f"unknown option {key!r}", _nearest(key, self.fields))
        if key in spec.values:
            raise spec.error(f"{key} is given twice", "give it once")
        spec.values[key] = _convert(spec, key, field, value)


class Spec:
    """What one option said: its subject (``kind`` and ``text``), and values by key."""

    __slots__ = ("grammar", "kind", "text", "values")

    def __init__(self, grammar: Grammar, kind: str, text: str) -> None:
        self.grammar = grammar
        self.kind = kind
        self.text = text
        self.values: dict[str, object] = {}
        if "\0" in text or "\n" in text:
            raise BadInput(
                f"{grammar.flag}: {text!r} has a NUL or a line break in it", hint="take it out"
            )
        if not text and grammar.subjects.get(kind) != "":
            raise BadInput(f"{self.label.rstrip()} names nothing", hint=grammar.example)

    @property
    def label(self) -> str:
        """The option as a message names it."""
        sign = self.grammar.subjects.get(self.kind)
        bare = sign is None or self.kind == self.grammar.bare
        return f"{self.grammar.flag} {self.text if bare else f'{self.kind}{sign}{self.text}'}"

    def error(self, what: str, hint: str) -> BadInput:
        """Return the error that names this option."""
        return BadInput(f"{self.label}: {what}", hint=hint)

    def get(self, key: str) -> object:
        """Return a value, or what its default is."""
        return self.values.get(key, self.grammar.fields[key].default)


def split(text: str) -> list[str]:
    """Return the parts between commas; a comma that is written twice is one of a part."""
    parts = [""]
    rest = text
    while True:
        before, comma, rest = rest.partition(",")
        parts[-1] += before
        if not comma:
            return parts
        if rest.startswith(","):
            parts[-1] += ","
            rest = rest[1:]
        else:
            parts.append("")


def escape(text: str) -> str:
    """Return a value as it can stand in a worker's orders: see kvmpv/dom0/orders.py."""
    octets = os.fsencode(text)
    return os.fsdecode(
        b"".join(b"%%%02X" % one if one in ESCAPED else bytes([one]) for one in octets)
    )


def _nearest(name: str, known: Mapping[str, Field]) -> str:
    import difflib

    found = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean {found[0]}?" if found else f"there are: {', '.join(known)}"


def _convert(spec: Spec, key: str, field: Field, value: object) -> object:
    kind = field.kind
    if isinstance(kind, tuple):
        return _choice(spec, key, kind, value)
    if kind == "flag":
        return _choice(spec, key, ("on", "off"), value) == "on"
    if kind in ("int", "size"):
        return _number(spec, key, field, value)
    text = value if isinstance(value, str) else ""
    if not text:
        raise spec.error(f"{key} wants a text, not {value!r}", f"write {key}=...")
    if len(os.fsencode(text)) > field.most:
        raise spec.error(f"{key}={text} is too long", f"at most {field.most} bytes are possible")
    if "\0" in text or "\n" in text or (kind == "word" and not WORD_CHARACTERS.issuperset(text)):
        raise spec.error(f"{key}={text!r} cannot be", "letters, digits, '.', '_' and '-' can")
    return text


def _choice(spec: Spec, key: str, choices: tuple[str, ...], value: object) -> str:
    if isinstance(value, bool):
        value = "on" if value else "off"
    if value not in choices:
        raise spec.error(f"{key}={value} cannot be", f"{key} is one of {', '.join(choices)}")
    return str(value)


def _number(spec: Spec, key: str, field: Field, value: object) -> int:
    number = -1
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, str):
        try:
            number = parse_size(value)
        except BadInput:
            pass
    if not field.least <= number <= field.most:
        shown = "nothing" if value is True else value
        most = f" to {field.most}" if field.most < 1 << 62 else " or more"
        raise spec.error(f"{key}={shown} cannot be", f"{field.least}{most} can")
    return number
