"""What a measurement gives: a section of the page, and which targets it met."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol


class Percentiles(Protocol):
    """Latencies of one run."""

    @property
    def p50_us(self) -> float: ...

    @property
    def p95_us(self) -> float: ...

    @property
    def p99_us(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Latencies:
    """Of several runs, the median of each percentile: one run in which the machine stood still does not count."""

    p50_us: float
    p95_us: float
    p99_us: float

    @classmethod
    def of(cls, runs: Sequence[Percentiles]) -> Latencies:
        return cls(
            median([run.p50_us for run in runs]),
            median([run.p95_us for run in runs]),
            median([run.p99_us for run in runs]),
        )

    @property
    def cells(self) -> tuple[str, str, str]:
        return milliseconds(self.p50_us), milliseconds(self.p95_us), milliseconds(self.p99_us)


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
