"""The machine: which processors run what, what it is, and how much of it others were using."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

_AVAILABLE: Final = sorted(os.sched_getaffinity(0))
# The server has a processor for itself where there are two; "on one core" is meant so.
SERVER: Final = set(_AVAILABLE[:1])
OTHERS: Final = set(_AVAILABLE[1:]) or SERVER

_PROBE_SECONDS: Final = 0.15
# A busy loop that gets this much of a processor is hardly disturbed.
_QUIET_SHARE: Final = 0.85
# How long a whole run may wait for quiet, so that it ends in time on a machine that never is.
_PATIENCE_SECONDS: Final = 150.0
_PAUSE_SECONDS: Final = 1.0


def raise_file_limit() -> int:
    """Allow this process and its children as many open files as the system lets it; returns how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


@contextlib.contextmanager
def on_server_processor() -> Iterator[None]:
    """Run this process where otherwise the server runs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, SERVER)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_shares() -> list[float]:
    """How much of each processor a busy loop gets: 1.0 where nobody else wants it."""
    before = os.sched_getaffinity(0)
    shares: list[float] = []
    for processor in _AVAILABLE:
        os.sched_setaffinity(0, {processor})
        used, began = time.process_time(), time.perf_counter()
        while time.perf_counter() - began < _PROBE_SECONDS:
            pass
        shares.append((time.process_time() - used) / (time.perf_counter() - began))
    os.sched_setaffinity(0, before)
    return shares


class Quiet:
    """Waits for moments in which the machine does nothing else, as long as there is patience left.

    Attributes:
        shares: How much of each processor was free when the waiting ended, each time.
    """

    def __init__(self) -> None:
        self.shares: list[float] = []
        self._patience_seconds = _PATIENCE_SECONDS

    def wait(self) -> None:
        while min(shares := free_shares()) < _QUIET_SHARE and self._patience_seconds > 0:
            time.sleep(_PAUSE_SECONDS)
            self._patience_seconds -= _PAUSE_SECONDS
        self.shares += shares


quiet: Final = Quiet()


def facts(postgresql: str) -> list[tuple[str, str]]:
    """What the figures were taken on."""
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return [
        ("date", datetime.now(tz=UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("processors", f"{len(_AVAILABLE)} ({_processor_model()})"),
        ("memory", f"{memory_bytes / 1e9:.0f} GB"),
        ("system", f"{platform.system()} {platform.release()} {platform.machine()}"),
        ("Python", f"{platform.python_implementation()} {platform.python_version()}"),
        ("PostgreSQL", f"{postgresql}, embedded, fsync off"),
        ("open files", f"{resource.getrlimit(resource.RLIMIT_NOFILE)[1]} a process"),
    ]


def _processor_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def memory_bytes(pid: int) -> int:
    """Memory that a process has for itself."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    fields = dict(line.split(":", 1) for line in rollup.splitlines()[1:])
    return sum(int(fields[name].split()[0]) * 1024 for name in ("Private_Clean", "Private_Dirty"))


def peak_bytes(pid: int) -> int:
    """The most that a process had resident since `forget_peak`."""
    status = Path(f"/proc/{pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def processor_seconds(pid: int) -> float:
    """Processor time that a process has used so far."""
    return time.clock_gettime(~pid << 3 | 2)  # the clock that clock_getcpuclockid() names
