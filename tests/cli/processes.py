"""Real `rowcast` processes: started, waited for with a deadline, and ended by their own handle."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

DEADLINE_SECONDS = 30.0
Found = TypeVar("Found")


def environment(**variables: str) -> dict[str, str]:
    """This process's, without what would set Rowcast up by accident."""
    ours = ("DATABASE_URL", "DATABASE_URL_DIRECT", "PG_CHANNELS", "FRONTEND_URL")
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ours and not name.startswith("ROWCAST_")
    }
    return {**kept, **variables}


class Process:
    """One `rowcast` command. Use it with `with`; whatever is left is killed."""

    def __init__(self, *arguments: object, cwd: Path | None = None, **variables: str) -> None:
        self._process = subprocess.Popen(
            [Path(sys.executable).with_name("rowcast"), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=environment(**variables),
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.errors: list[str] = []
        self._threads = [threading.Thread(target=work) for work in (self._read_lines, self._read_errors)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for thread in self._threads:
            thread.join()
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def line(self) -> str:
        """The next line of standard output."""
        line = self._lines.get(timeout=DEADLINE_SECONDS)
        if line is None:
            raise AssertionError(f"it ended with {self._process.wait()}: {self.error_text()}")
        return line

    def until_ready(self) -> dict[str, str]:
        """Wait for the line `ready`; the addresses printed before it, by name."""
        addresses: dict[str, str] = {}
        while (line := self.line()) != "ready":
            name, _, value = line.partition(":")
            addresses[name] = value.strip()
        return addresses

    def message(self, wanted: Callable[[dict[str, Any]], object] = lambda _: True) -> dict[str, Any]:
        """The next line of JSON that is wanted; others are skipped."""
        while True:
            message: dict[str, Any] = json.loads(self.line())
            if wanted(message):
                return message

    def change(self) -> dict[str, Any]:
        """The next change that `tail --json` prints."""
        return self.message(lambda message: "op" in message)

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self, number: int) -> int:
        """Send a signal and return the exit code."""
        self.send(number)
        return self.wait()

    def ended_within(self, seconds: float) -> bool:
        """Give it so much time to live."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def wait(self) -> int:
        return self._process.wait(DEADLINE_SECONDS)

    def error_text(self) -> str:
        self._threads[1].join(1.0)
        return "".join(self.errors)

    def _read_lines(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.decode().rstrip("\n"))
        self._lines.put(None)

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.errors.append(line.decode())


def run(*arguments: object, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself."""
    return subprocess.run(
        [Path(sys.executable).with_name("rowcast"), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_SECONDS,
        cwd=cwd,
        env=environment(**variables),
    )


def eventually(look: Callable[[], Found], wanted: Callable[[Found], bool]) -> Found:
    """Look until what is seen is wanted; the last sight goes into the failure."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not wanted(seen := look()):
        assert time.monotonic() < deadline, f"still {seen!r}"
        time.sleep(0.02)
    return seen
