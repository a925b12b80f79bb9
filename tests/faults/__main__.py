"""`make faults`: round after round, over both captures, on PostgreSQL 18 and 16, until the time is over.

A round that fails is tried again with ever smaller plans, and the smallest that still fails is printed.

    FAULTS_SECONDS=600   how long
    FAULTS_SEED=…        what the rounds are made of; their own seeds are this one and their numbers
    FAULTS_ONLY=wal-18   one combination of capture and version
    FAULTS_PLAN=…        one plan, as a failure prints it
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Final

import msgspec
from tests.faults.campaign import FailedError, Plan, Report, make_plan, run_plan
from tests.faults.stage import Capture

_COMBINATIONS: Final[tuple[tuple[Capture, int], ...]] = (
    ("wal", 18),
    ("outbox", 18),
    ("wal", 16),
    ("outbox", 16),
)
# What depends on time does not fail every time: enough attempts to lose most of a plan, and an end within minutes.
_SMALLER_ATTEMPTS: Final = 10


def main() -> None:
    if given := os.environ.get("FAULTS_PLAN"):
        plan = msgspec.json.decode(given, type=Plan)
        print(_attempt(plan) or "it did not fail")
        return
    seconds = float(os.environ.get("FAULTS_SECONDS", "600"))
    seed = os.environ.get("FAULTS_SEED", f"{time.time_ns() // 1000 % 10**9}")
    only = os.environ.get("FAULTS_ONLY")
    combinations = [each for each in _COMBINATIONS if only in {None, f"{each[0]}-{each[1]}"}]
    print(f"seed {seed}, {seconds:g} s", flush=True)
    began = time.monotonic()
    total, number = Report(), 0
    while time.monotonic() - began < seconds:
        capture, version = combinations[number % len(combinations)]
        plan = make_plan(f"{seed}-{number}", capture, version)
        if text := _attempt(plan, total):
            print(f"FAILED: {text}\n")
            text, smallest = _smaller(text, plan)
            print(
                f"\nthe smallest plan that fails: {text}\n\nagain: FAULTS_PLAN='{_encoded(smallest)}' make faults"
            )
            sys.exit(1)
        number += 1
    print(f"{number} rounds in {(time.monotonic() - began) / 60:.0f} minutes, none failed: {total}")


def _attempt(plan: Plan, total: Report | None = None) -> str:
    """Run a plan once and print a line about it; what went wrong, or nothing."""
    setting, began = plan.setting, time.monotonic()
    name = f"{plan.seed}: {setting.capture}, PostgreSQL {setting.version}, {setting.writers} writers"
    name += ", a late standby" if setting.standby else ""
    try:
        report = asyncio.run(run_plan(plan))
    except FailedError as error:
        print(f"{name}, {time.monotonic() - began:.0f} s: failed", flush=True)
        return str(error)
    print(f"{name}, {time.monotonic() - began:.0f} s: {report}", flush=True)
    if total is not None:
        total.add(report)
    return ""


def _smaller(text: str, plan: Plan) -> tuple[str, Plan]:
    """The smallest plan that was found to fail too, and what went wrong in it."""
    candidates = plan.smaller()
    for _ in range(_SMALLER_ATTEMPTS):
        if not candidates:
            break
        candidate = candidates.pop(0)
        if found := _attempt(candidate):
            text, plan = found, candidate
            candidates = plan.smaller()
    return text, plan


def _encoded(plan: Plan) -> str:
    return msgspec.json.encode(plan).decode().replace("'", "'\\''")


if __name__ == "__main__":
    main()
