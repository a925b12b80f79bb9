"""Rounds of random writers, subscribers and faults, each step ended by a barrier at which everything is compared.

The one rule of this room: a plan is made of seeds before anything runs, so that it can be repeated, and made smaller.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.faults.journal import Journal
from tests.faults.oracle import Oracle
from tests.faults.schema import EVERYTHING, Table, random_columns, random_filter
from tests.faults.stage import MARKER, Capture, Setting, Stage
from tests.faults.strict import StrictClient

_BARRIER_SECONDS: Final = 40.0
Act = tuple[float, str, float]  # when, what, and a number that says how


@dataclass(frozen=True, slots=True)
class Step:
    """A stretch of writing, with what happens in it."""

    seed: str
    seconds: float
    acts: tuple[Act, ...]

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s: " + ", ".join(
            f"{when:.2f} {what} {how:.3f}" for when, what, how in self.acts
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """A round."""

    seed: str
    setting: Setting
    clients: int
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        lines = [f"seed {self.seed}, {self.clients} clients, {self.setting}"]
        return "\n".join([*lines, *(f"  step {number}, {step}" for number, step in enumerate(self.steps))])


@dataclass(slots=True)
class Report:
    """What a round did."""

    commits: int = 0
    states: int = 0
    snapshots: int = 0
    acts: Counter[str] = field(default_factory=Counter)
    resyncs: Counter[str] = field(default_factory=Counter)

    def add(self, other: Report) -> None:
        self.commits += other.commits
        self.states += other.states
        self.snapshots += other.snapshots
        self.acts += other.acts
        self.resyncs += other.resyncs


class FailedError(AssertionError):
    """A round has failed; the text says what was wrong and what had happened."""


# What can happen, and how often.
ACTS: Final[dict[str, int]] = {
    "sleep": 8,
    "wake": 10,
    "join": 4,
    "leave": 2,
    "reload": 5,
    "hold": 4,
    "kill_server": 2,
    "stop_server": 1,
    "freeze_server": 1,
    "kill_postgres": 2,
    "terminate_walsender": 2,
    "terminate_snapshots": 2,
    "cut": 5,
    "stall": 3,
    "half_open": 3,
    "drop_after": 3,
    "alter": 2,
}


def make_plan(
    seed: str, capture: Capture, version: int, *, steps: int = 6, acts: dict[str, int] | None = None
) -> Plan:
    chance = random.Random(seed)
    weights = ACTS if acts is None else acts
    serve = {
        "replay-window-bytes": chance.choice(("64kB", "1MB", "64MiB")),
        "session-queue-bytes": chance.choice(("32kB", "4MiB")),
        "slow-client-seconds": "3",
        "max-transaction-bytes": chance.choice(("100kB", "64MiB", "64MiB")),
    }
    setting = Setting(
        capture,
        version,
        f"{seed}-schema",
        chance.choice((1, 4, 12, 32)),
        serve,
        standby=chance.random() < 0.3,
    )
    made: list[Step] = []
    for number in range(steps):
        seconds = chance.uniform(1.0, 3.0)
        happening = chance.choices(list(weights), list(weights.values()), k=chance.choice((1, 2, 4, 6, 8)))
        made.append(
            Step(
                f"{seed}-{number}",
                seconds,
                tuple(sorted((chance.uniform(0, seconds), what, chance.random()) for what in happening)),
            )
        )
    return Plan(seed, setting, chance.randint(2, 5), tuple(made))


class Round:
    """One run of a plan."""

    def __init__(self, plan: Plan, stage: Stage) -> None:
        self.plan = plan
        self.stage = stage
        self.chance = random.Random(f"{plan.seed}-round")
        self.report = Report()
        self.log: list[str] = []
        self.clients: list[StrictClient] = []
        self.marked = 0
        self.began = time.monotonic()
        self._names = 0
        self._altered: dict[str, Table] = {}

    def say(self, text: str) -> None:
        self.log.append(f"{time.monotonic() - self.began:8.3f} {text}")

    async def run(self) -> Report:
        stage = self.stage
        self.oracle = await asyncio.to_thread(Oracle, stage.dsn, [*stage.tables, MARKER])
        try:
            await stage.execute("INSERT INTO marker VALUES (1, 0)")
            await stage.start_server()
            stage.start_writers(self.plan.seed)
            await stage.server_ready()
            for _ in range(self.plan.clients):
                self.join()
            for number, step in enumerate(self.plan.steps):
                self.say(f"step {number}: {step}")
                await self.step(step)
                await self.barrier()
            return self.report
        finally:
            for client in self.clients:
                await client.sleep()
            self.oracle.close()

    # Subscribers.

    def join(self) -> None:
        """A new client with some subscriptions and the marker's."""
        self._names += 1
        name = f"client {self._names}"
        journals = [
            Journal(
                f"{name}.{number}",
                table := self.chance.choice(self.stage.tables),
                random_filter(self.chance, table),
                random_columns(self.chance, table) if table.key else None,
            )
            for number in range(self.chance.randint(1, 4))
        ]
        if self.chance.random() < 0.3:
            twin = journals[0]
            journals.append(Journal(f"{name}.twin", twin.table, twin.filter, twin.columns))
        journals.append(Journal(f"{name}.marker", MARKER, EVERYTHING, None))
        client = StrictClient(name, self.stage.url.replace("http", "ws") + "/ws", journals)
        self.clients.append(client)
        client.wake()
        self.say(f"{name} joins: {[(each.table.name, each.filter.wire, each.columns) for each in journals]}")

    # What happens.

    async def step(self, step: Step) -> None:
        assert self.stage.writers is not None
        if self.stage.standby is not None:
            self.stage.standby.late()
        await asyncio.to_thread(self.stage.writers.go)
        async with asyncio.TaskGroup() as group:
            for when, what, how in step.acts:
                group.create_task(self._act(when, what, how))
            group.create_task(asyncio.sleep(step.seconds))

    async def _act(self, when: float, what: str, how: float) -> None:
        await asyncio.sleep(when)
        self.say(f"{what} {how:.3f}")
        self.report.acts[what] += 1
        await getattr(self, f"do_{what}")(how)

    def _client(self, how: float) -> StrictClient:
        return self.clients[int(how * len(self.clients))]

    def _link(self, how: float) -> Any:
        return self.stage.links[("client", "capture", "query")[int(how * 3)]]

    async def do_sleep(self, how: float) -> None:
        await self._client(how).sleep()

    async def do_wake(self, how: float) -> None:
        self._client(how).wake()

    async def do_join(self, how: float) -> None:
        if len(self.clients) < 8:
            self.join()

    async def do_leave(self, how: float) -> None:
        if len(self.clients) > 2:
            client = self._client(how)
            await client.sleep()
            for journal in client.journals:
                journal.invalid = True

    async def do_reload(self, how: float) -> None:
        await self._client(how).reload(int(how * 1000))

    async def do_hold(self, how: float) -> None:
        await self._client(how).hold(how * 3)

    async def do_kill_server(self, how: float) -> None:
        async with self._server_lock:
            await self.stage.kill_server(how)

    async def do_stop_server(self, how: float) -> None:
        async with self._server_lock:
            await self.stage.kill_server(how, 15)

    async def do_freeze_server(self, how: float) -> None:
        async with self._server_lock:
            await self.stage.freeze_server(how * 3)

    async def do_kill_postgres(self, how: float) -> None:
        async with self._postgres_lock:
            await self.stage.kill_postgres(how)

    async def do_terminate_walsender(self, how: float) -> None:
        async with self._postgres_lock:
            await self.stage.execute(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'rowcast' AND active"
            )

    async def do_terminate_snapshots(self, how: float) -> None:
        async with self._postgres_lock:
            await self.stage.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'rowcast snapshot%%'"
            )

    async def do_cut(self, how: float) -> None:
        self._link(how).cut()

    async def do_stall(self, how: float) -> None:
        link = self._link(how)
        link.stall()
        await asyncio.sleep((how * 30 % 1) * 2)
        link.resume()

    async def do_half_open(self, how: float) -> None:
        link = self._link(how)
        link.half_open()
        await asyncio.sleep((how * 30 % 1) * 2)
        link.resume()

    async def do_drop_after(self, how: float) -> None:
        link = self._link(how)
        link.drop_after(int((how * 30 % 1) ** 3 * 100_000))
        await asyncio.sleep(0.5)
        link.resume()

    async def do_alter(self, how: float) -> None:
        """A column comes, goes, is renamed or gets another type, with or without rows written in the same transaction."""

    # The barrier.

    async def barrier(self) -> None:
        """Wait until everybody has everything, and compare."""
        stage = self.stage
        assert stage.writers is not None
        await stage.calm()
        self.report.commits = await asyncio.to_thread(stage.writers.pause)
        self.marked += 1
        await stage.execute("UPDATE marker SET n = %s", self.marked)
        self.say(f"barrier {self.marked}, {self.report.commits} transactions")
        await self._until_all_have(self.marked)
        await asyncio.to_thread(self._compare)

    async def _until_all_have(self, value: int) -> None:
        deadline = time.monotonic() + _BARRIER_SECONDS
        while True:
            behind = []
            for client in self.clients:
                if client.failure is not None:
                    raise client.failure
                if client.awake and not client.live(client.journals[-1], value):
                    behind.append(client)
            if not behind:
                return
            if time.monotonic() > deadline:
                raise FailedError(
                    f"not live after {_BARRIER_SECONDS:g} s: " + "; ".join(map(_describe, behind))
                )
            await asyncio.sleep(0.02)

    def _compare(self) -> None:
        oracle = self.oracle
        oracle.read()
        journals = [journal for client in self.clients for journal in client.journals]
        oracle.evaluate(journal.shape for journal in journals)
        oracle.verify()
        for client in self.clients:
            for journal in client.journals:
                self.report.states += journal.verify(oracle)
                if client.awake:
                    journal.verify_end(oracle)
                self.report.resyncs += journal.resyncs
                journal.resyncs.clear()

    @property
    def _server_lock(self) -> asyncio.Lock:
        lock: asyncio.Lock = self.__dict__.setdefault("server_lock", asyncio.Lock())
        return lock

    @property
    def _postgres_lock(self) -> asyncio.Lock:
        lock: asyncio.Lock = self.__dict__.setdefault("postgres_lock", asyncio.Lock())
        return lock


def _describe(client: StrictClient) -> str:
    states = [
        f"{each.journal.name} {'invalid' if each.journal.invalid else each.journal.position} asked {each.asked} due {each.due}"
        for each in client.subscriptions
    ]
    return f"{client.name}, {client.connects} connects: {states}; {client.log[-6:]}"


async def run_plan(plan: Plan) -> Report:
    """Run a plan on a stage of its own.

    Raises:
        FailedError: Something was wrong; the text has the plan, the log and the server's last words.
    """
    with tempfile.TemporaryDirectory(prefix="rowcast-faults-") as folder:
        path = Path(folder)
        path.chmod(0o777)  # noqa: ASYNC240 - of no duration
        stage = Stage(plan.setting, path)
        round_ = Round(plan, stage)
        try:
            async with stage:
                return await round_.run()
        except Exception as error:
            server = stage.server_errors[-40:]
            raise FailedError(
                "\n".join(
                    [
                        f"{type(error).__name__}: {error}",
                        "the plan was:",
                        str(plan),
                        "what happened:",
                        *round_.log[-80:],
                        *(line for client in round_.clients for line in client.log[-10:]),
                        "the server's last words:",
                        *(line.rstrip() for line in server),
                    ]
                )
            ) from error
