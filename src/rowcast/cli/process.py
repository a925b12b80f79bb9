"""What `serve` and `demo` share: logs, signals, and the last line `ready`."""

from __future__ import annotations

import logging
import signal
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any, Final, Self

import click

# Scripts wait for this line: the server takes subscriptions from here on.
READY: Final = "ready"


def log_to_stderr(level: str) -> None:
    """Log lines to standard error; what scripts read is on standard output."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("rowcast").setLevel(level.upper())
    # uvicorn tells of every start and stop step at info, which is ours to tell.
    logging.getLogger("uvicorn").setLevel(level.upper() if level != "info" else "WARNING")


class Stopped(BaseException):
    """SIGINT or SIGTERM came before there was a server that it could stop."""


class Signals:
    """Within the block, SIGINT and SIGTERM are noted, in place of a death that leaves a database behind.

    uvicorn puts its own handlers in place while it runs and raises the signal again when it has ended, which then
    ends here. A second SIGINT breaks off whatever hangs.
    """

    def __init__(self) -> None:
        self._came = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {
            number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        return isinstance(error, Stopped)

    def check(self) -> None:
        """Leave the block if a signal has come; called between two steps of a start."""
        if self._came:
            raise Stopped

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self._came and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._came = True


def announce(addresses: Sequence[tuple[str, str]]) -> None:
    """Print names and addresses, and `ready` as the last line, at once even into a pipe."""
    width = max(len(name) for name, _ in addresses) + 2
    for name, address in addresses:
        click.echo(click.style(f"{name}:".ljust(width), bold=True) + address)
    click.echo(READY)
