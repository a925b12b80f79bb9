"""`make faults`: rounds after rounds, over both captures and PostgreSQL 16 and 18."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Literal

from tests.faults.campaign import FailedError, Report, make_plan, run_plan


def main() -> None:
    seconds = float(os.environ.get("FAULTS_SECONDS", "600"))
    seed = os.environ.get("FAULTS_SEED", f"{time.time_ns() // 1000 % 10**9}")
    combos: list[tuple[Literal["wal", "outbox"], int]] = [("wal", 18), ("wal", 16)]
    began = time.monotonic()
    total = Report()
    number = 0
    while time.monotonic() - began < seconds:
        capture, version = combos[number % len(combos)]
        plan = make_plan(f"{seed}-{number}", capture, version)
        t = time.monotonic()
        try:
            report = asyncio.run(run_plan(plan))
        except FailedError as error:
            print(f"FAILED\n{error}")
            sys.exit(1)
        print(
            plan.seed,
            capture,
            version,
            plan.setting.writers,
            plan.setting.standby,
            f"{time.monotonic() - t:.1f}s",
            report,
            flush=True,
        )
        total.add(report)
        number += 1
    print("all:", total)


if __name__ == "__main__":
    main()
