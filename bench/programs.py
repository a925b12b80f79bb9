"""The processes that take part: each reads orders from its standard input and answers in lines."""

from __future__ import annotations

import functools
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Set as AbstractSet
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from bench.machine import OTHERS, SERVER

_HERE: Final = Path(__file__).parent
# Nothing here takes as long; what does, hangs.
_DEADLINE_SECONDS: Final = 120.0
_IDLE_MILLISECONDS: Final = 15_000


class BenchError(Exception):
    """A measurement that cannot be taken; the text says why."""


class Program:
    """A process on given processors, with lines to and from it. Use it with `with`."""

    def __init__(self, *command: object, processors: AbstractSet[int] = OTHERS) -> None:
        self._process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=lambda: os.sched_setaffinity(0, processors),  # noqa: PLW1509 - no threads here
        )
        self._name = Path(str(command[0])).name
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(_DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, order: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(order.encode() + b"\n")
        self._process.stdin.flush()

    def line(self) -> str:
        """The next line that the process prints.

        Raises:
            BenchError: It has ended, or prints nothing.
        """
        assert self._process.stdout is not None
        output = self._process.stdout.fileno()
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while b"\n" not in self._rest:
            readable, _, _ = select.select([output], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(output, 1 << 16) if readable else b""
            if not data:
                raise BenchError(f"{self._name} {'has ended' if readable else 'does not answer'}")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()


class Answer(msgspec.Struct):
    """What the load client saw since its last answer; see load_client.c."""

    rows: int
    missing: int
    said_us: int
    first_us: int
    last_us: int
    now_us: int
    p50_us: int
    p95_us: int
    p99_us: int
    max_us: int
    resyncs: int
    errors: int
    closed: int
    bytes: int


_read_answer: Final = msgspec.json.Decoder(Answer).decode


class LoadClient(Program):
    """Many WebSocket clients in one process that costs little."""

    def __init__(self, port: int, path: str, clients: int) -> None:
        super().__init__(compiled("load_client"), port, path, clients)
        self.clients = clients

    def ask(self, order: str) -> Answer:
        """Give an order and wait until it is carried out.

        Raises:
            BenchError: Something that was waited for did not come.
        """
        self.tell(order)
        return self.answer()

    def answer(self) -> Answer:
        answer = _read_answer(self.line())
        if answer.missing or answer.errors or answer.closed:
            raise BenchError(f"the clients did not get everything: {answer}")
        return answer

    def subscribe(self, message: str) -> None:
        """Connect every client and let it subscribe; `%d` in the message is the client's number."""
        self.ask(f"open {_IDLE_MILLISECONDS}")
        self.ask(f"say {message}")
        self.ask(f"subscribed {_IDLE_MILLISECONDS}")

    def expect_each(self, count: int) -> None:
        """From here on, `answer` comes when every client has got `count` rows more."""
        self.tell(f"each {count} {_IDLE_MILLISECONDS}")

    def expect_total(self, count: int) -> None:
        """From here on, `answer` comes when all clients together have got `count` rows more."""
        self.tell(f"total {count} {_IDLE_MILLISECONDS}")

    def expect_snapshots(self) -> None:
        """From here on, `answer` comes when every client has one snapshot more."""
        self.tell(f"finished {_IDLE_MILLISECONDS}")


def send_floor(clients: int, frame_bytes: int) -> Program:
    """The C program that only sends; its first line is its port."""
    return Program(compiled("send_floor"), clients, frame_bytes, processors=SERVER)


def broadcast_server(frame_bytes: int) -> Program:
    """`websockets.broadcast`; its first line is its port."""
    return Program(sys.executable, "-m", "bench.broadcast_server", frame_bytes, processors=SERVER)


@functools.cache
def _build_directory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="rowcast-bench-")


@functools.cache
def compiled(name: str) -> Path:
    """A C program of this folder, compiled.

    Raises:
        BenchError: There is no compiler.
    """
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        raise BenchError("there is no C compiler (cc, gcc or clang): the load client and the floor need one")
    program = Path(_build_directory().name) / name
    subprocess.run([compiler, "-O2", "-o", program, _HERE / f"{name}.c"], check=True)
    return program
