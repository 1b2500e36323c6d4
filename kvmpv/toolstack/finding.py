"""What is found about a host."""

from __future__ import annotations


class Finding:
    """One thing about the host: whether it is as it should be, what was seen, what to do.

    ``needed`` says that no guest runs without it; ``fix`` is (path, content) of what may safely be
    written to mend it.
    """

    __slots__ = ("fix", "good", "name", "needed", "remedy", "seen")

    def __init__(
        self,
        name: str,
        good: bool,
        seen: str,
        remedy: str = "",
        *,
        needed: bool = False,
        fix: tuple[str, str] | None = None,
    ) -> None:
        self.name = name
        self.good = good
        self.seen = seen
        self.remedy = "" if good else remedy
        self.needed = needed
        self.fix = None if good else fix
