"""What a measurement comes to: pairs of figures, their ratio, and whether that meets the goal."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `ours` and `theirs` are paired: the same place in both is one pair of the run."""

    name: str
    what: str
    unit: str
    ours: Sequence[float]
    theirs: Sequence[float]
    direction: Literal["at least", "at most"]
    goal: float
    notes: Sequence[str] = field(default_factory=tuple)
    by: Literal["ratio", "added"] = "ratio"
    """Whether a pair is compared by its ratio, or by how much ours adds."""

    @property
    def ratio(self) -> float:
        """The median of the pairs' own figures, so that a slow minute of the machine weighs on both sides."""
        pairs = zip(self.ours, self.theirs, strict=True)
        if self.by == "added":
            return statistics.median(ours - theirs for ours, theirs in pairs)
        return statistics.median(ours / theirs for ours, theirs in pairs)

    @property
    def met(self) -> bool:
        """Whether the figure is where it should be."""
        return self.ratio >= self.goal if self.direction == "at least" else self.ratio <= self.goal

    def as_json(self) -> Mapping[str, Any]:
        """Give it for programs: the medians, the ratio, the goal, and every figure in the order taken."""
        return {
            "name": self.name,
            "what": self.what,
            "unit": self.unit,
            "ours": statistics.median(self.ours),
            "theirs": statistics.median(self.theirs),
            self.by: self.ratio,
            "direction": self.direction,
            "goal": self.goal,
            "met": self.met,
            "notes": list(self.notes),
            "pairs": [list(pair) for pair in zip(self.ours, self.theirs, strict=True)],
        }


@dataclass(frozen=True, slots=True)
class Series:
    """Figures over a size, for a plot: for each line its points, which are pairs of size and figure."""

    name: str
    what: str
    x: str
    unit: str
    lines: Mapping[str, Sequence[tuple[float, float]]]

    def as_json(self) -> Mapping[str, Any]:
        """Give it for programs."""
        return asdict(self)


def interleave(
    pairs: int, ours: Callable[[], float], theirs: Callable[[], float]
) -> tuple[list[float], list[float]]:
    """Take figures by turns, A B B A A B .., so that neither side is always the second."""
    taken: tuple[list[float], list[float]] = ([], [])
    for number in range(pairs):
        order = ((taken[0], ours), (taken[1], theirs))
        for figures, take in order if number % 2 == 0 else reversed(order):
            figures.append(take())
    return taken


def percentile(figures: Sequence[float], share: float) -> float:
    """Give the smallest figure that at least this share of all do not exceed."""
    return sorted(figures)[max(0, math.ceil(share * len(figures)) - 1)]


def table(rows: Sequence[Row]) -> str:
    """Give the rows as text, a note under each."""
    head = ("", "ours", "theirs", "ratio", "goal", "")
    body = [
        (
            row.name,
            f"{statistics.median(row.ours):,.1f} {row.unit}",
            f"{statistics.median(row.theirs):,.1f} {row.unit}",
            f"{row.ratio:.3g}" if row.by == "ratio" else f"{row.ratio:+.2f} {row.unit}",
            f"{row.direction} {row.goal:g}" + ("" if row.by == "ratio" else f" {row.unit}"),
            "met" if row.met else "MISSED",
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in (head, *body)) for column in range(len(head))]
    lines = [_line(head, widths)]
    for cells, row in zip(body, rows, strict=True):
        lines.append(_line(cells, widths))
        lines += [f"    {note}" for note in (row.what, *row.notes)]
    return "\n".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = (
        cell.ljust(width) if number in (0, 5) else cell.rjust(width)
        for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join((first, *rest)).rstrip()
