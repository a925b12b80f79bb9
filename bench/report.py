"""What a measurement gives: a section of the page, and which targets it met."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Target:
    """A figure that was promised, and the one that was measured."""

    what: str
    wanted: str
    measured: str
    met: bool


@dataclass(slots=True)
class Section:
    title: str
    text: str
    targets: list[Target] = field(default_factory=list[Target])


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; the first column is text, the others are figures."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def number(value: float) -> str:
    """1234567 as 1,234,567; three digits where it is small."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def spread(values: Sequence[float]) -> str:
    """The median, with the least and the most of several runs."""
    middle = number(median(values))
    return f"{middle} ({number(min(values))} to {number(max(values))})" if len(values) > 1 else middle


def milliseconds(microseconds: float) -> str:
    return f"{microseconds / 1000:.2f}"
