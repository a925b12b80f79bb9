"""How long `rowcast demo` takes until its page is there."""

from __future__ import annotations

import socket
import sys
import time
import urllib.request
from pathlib import Path
from typing import Final

from bench.machine import OTHERS, SERVER
from bench.programs import Program
from bench.report import Section, Target, spread

_RUNS: Final = 3


def measure() -> Section:
    seconds = [_start() for _ in range(_RUNS)]
    slowest = max(seconds)
    return Section(
        "Start",
        "`rowcast demo` (what `make demo` runs after `make setup`) from the command to the answer to `GET /`, with a new\n"
        f"database made on the way: {spread(seconds)} s.",
        [Target("`make demo` until the page is usable", "< 5 s", f"{slowest:.1f} s", slowest < 5)],
    )


def _start() -> float:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    began = time.perf_counter()
    rowcast = Path(sys.executable).with_name("rowcast")
    with Program(rowcast, "demo", "--port", port, "--no-open", processors=SERVER | OTHERS) as demo:
        while demo.line() != "ready":
            pass
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as page:
            page.read()
        return time.perf_counter() - began
