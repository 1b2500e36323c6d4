"""Figures: what was measured on both sides, and whether the goal is met."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True)
class Figure:
    """One comparison. ``limit`` is the most that ``value`` may be; 0 where there is no goal.

    With ``more`` it is the least: of rates, for one. ``value`` is ``ours / peer`` where there is a
    peer, else ``ours`` itself.
    """

    name: str
    unit: str
    ours: float
    peer: float
    peer_name: str
    limit: float
    more: bool = False

    @property
    def value(self) -> float:
        """What is held against the limit."""
        return self.ours / self.peer if self.peer else self.ours

    @property
    def met(self) -> bool:
        """Whether the goal is met; true where there is none."""
        if not self.limit:
            return True
        return self.value >= self.limit if self.more else self.value <= self.limit

    def as_dict(self) -> dict[str, object]:
        """Return what ``--json`` prints."""
        return {**asdict(self), "value": self.value, "met": self.met}


def interleaved(rounds: int, *sides: Callable[[], float]) -> list[float]:
    """Run the sides in turn, so that the machine's moods hit all alike; return their medians."""
    samples: Sequence[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for kept, side in zip(samples, sides, strict=True):
            kept.append(side())
    return [median(kept) for kept in samples]


def table(figures: list[Figure]) -> str:
    """Return the figures as text in columns."""
    head = ("what", "kvmpv", "peer", "ratio", "goal", "")
    rows = [head, *(_row(figure) for figure in figures)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(head))]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _row(figure: Figure) -> tuple[str, ...]:
    peer = f"{figure.peer:.4g} {figure.unit} {figure.peer_name}" if figure.peer else "-"
    ratio = f"{figure.value:.2f}" if figure.peer else "-"
    goal = f"{'>=' if figure.more else '<='} {figure.limit:g}" if figure.limit else "-"
    verdict = ("met" if figure.met else "NOT MET") if figure.limit else ""
    return (figure.name, f"{figure.ours:.4g} {figure.unit}", peer, ratio, goal, verdict)
