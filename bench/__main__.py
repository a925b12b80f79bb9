"""`python -m bench` measures everything and writes docs/performance.md; `python -m bench PART…` prints parts of it."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeAlias

from bench import capture, client, commit_cost, fanout, latency, machine, memory, routing, snapshots, start
from bench.deployment import Database
from bench.report import Section

_PAGE: Final = Path(__file__).parent.parent / "docs" / "performance.md"
_Measure: TypeAlias = Callable[[Database], Section]


_PARTS: Final[dict[str, _Measure]] = {
    "fanout": fanout.measure,
    "latency": latency.measure,
    "capture": capture.measure,
    "memory": memory.measure,
    "commits": lambda _: commit_cost.measure(),
    "routing": lambda _: routing.measure(),
    "snapshots": snapshots.measure,
    "client": lambda _: client.measure(),
    "start": lambda _: start.measure(),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("part", nargs="*", help=f"one or more of: {', '.join(_PARTS)}")
    names: list[str] = parser.parse_args().part
    unknown = [name for name in names if name not in _PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]}; there are: {', '.join(_PARTS)}")
    machine.raise_file_limit()
    os.sched_setaffinity(0, machine.OTHERS)
    began = time.perf_counter()
    with Database() as database:
        version = database.version
        sections = _measure(database, names or list(_PARTS))
    if names:
        print("\n\n".join(_text(section) for section in sections))
    else:
        _PAGE.write_text(_page(sections, version, time.perf_counter() - began), "utf-8")
        print(f"written: {_PAGE}")


def _measure(database: Database, names: list[str]) -> list[Section]:
    sections: list[Section] = []
    for name in names:
        print(name, end=" … ", file=sys.stderr, flush=True)
        machine.quiet.wait()
        began = time.perf_counter()
        try:
            sections.append(_PARTS[name](database))
        except Exception as error:  # noqa: BLE001 - the other parts are worth having
            traceback.print_exc()
            sections.append(Section(name.capitalize(), f"Could not be measured: {error}."))
        print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)
    return sections


def _page(sections: list[Section], postgresql: str, seconds: float) -> str:
    free = machine.quiet.shares
    facts = [
        *machine.facts(postgresql),
        (
            "processors free",
            f"{_percent(free)}: what a busy loop got of each before each run, median (least)",
        ),
    ]
    head = f"""# Performance

Made by `make bench` (`python -m bench`) in {seconds / 60:.0f} minutes; `python -m bench fanout` measures one part. The
server has one processor for itself; database, clients and writers share the others.
"""
    noise = (
        "The machine did little else meanwhile."
        if statistics.median(free) > 0.95 and min(free) > 0.8
        else "The machine did other work meanwhile: rates by the clock are lower bounds, the tails of latencies are largely\n"
        "the scheduler's. Processor times, ratios within a run and medians are what to go by."
    )
    parts = [
        head,
        "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts)]),
        f"\n{noise}\n",
        f"## What was promised, and what was measured\n\n{_targets(sections)}\n",
        "\n\n".join(_text(section) for section in sections),
    ]
    return "\n".join(parts) + "\n"


def _percent(shares: list[float]) -> str:
    return f"{statistics.median(shares):.0%} ({min(shares):.0%})"


def _targets(sections: list[Section]) -> str:
    lines = ["| what | promised | measured | kept |", "|---|---:|---:|---|"]
    for section in sections:
        for each in section.targets:
            kept = "yes" if each.met else "no"
            lines.append(f"| {each.what} | {each.wanted} | {each.measured} | {kept} |")
    return "\n".join(lines)


def _text(section: Section) -> str:
    return f"## {section.title}\n\n{section.text}"


if __name__ == "__main__":
    main()
