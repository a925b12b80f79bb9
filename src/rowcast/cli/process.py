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


# Soon enough for whoever stops a server, and seldom enough to be nothing.
_KNOCK_SECONDS: Final = 0.2


class Stopped(BaseException):
    """SIGINT or SIGTERM came before there was a server that it could stop."""


class Signals:
    """Within the block, SIGINT and SIGTERM are noted, in place of a death that leaves a database behind.

    uvicorn puts its own handlers in place while it runs and raises the signal again when it has ended, which then
    ends here. A signal that came too early for uvicorn knocks again until somebody opens. SIGHUP, by which a closed
    terminal says so, counts as SIGTERM, except under nohup.
    """

    def __init__(self) -> None:
        self._came = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        handlers = {
            signal.SIGINT: self._note,
            signal.SIGTERM: self._note,
            signal.SIGHUP: _terminate,
            signal.SIGALRM: _terminate,
        }
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            del handlers[signal.SIGHUP]
        self._before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        return isinstance(error, Stopped)

    def check(self) -> None:
        """Leave the block if a signal has come; called between two steps of a start."""
        if self._came:
            raise Stopped

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._came = True
        signal.setitimer(signal.ITIMER_REAL, _KNOCK_SECONDS)


def _terminate(_number: int, _frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGTERM)


def announce(addresses: Sequence[tuple[str, str]]) -> None:
    """Print names and addresses, and `ready` as the last line, at once even into a pipe."""
    width = max(len(name) for name, _ in addresses) + 2
    for name, address in addresses:
        click.echo(click.style(f"{name}:".ljust(width), bold=True) + address)
    click.echo(READY)
