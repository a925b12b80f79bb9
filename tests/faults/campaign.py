"""Rounds of random writers, subscribers and faults, each step ended by a barrier at which everything is compared.

The one rule of this room: a plan is made of seeds before anything runs, so that it can be repeated, and made smaller.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from tests.faults.acts import Acts
from tests.faults.followers import Follower, LiveFollower, MirrorFollower, StreamFollower
from tests.faults.journal import Journal, Loaded, same_epoch
from tests.faults.oracle import Oracle
from tests.faults.order import LogOrder, OutboxOrder
from tests.faults.schema import EVERYTHING, random_columns, random_filter
from tests.faults.stage import MARKER, Capture, Setting, Stage
from tests.faults.strict import StrictClient

_BARRIER_SECONDS: Final = 45.0  # a link that died in silence is found out after 30
_LOOK_SECONDS: Final = 0.02
_MOST_SUBSCRIBERS: Final = 9  # the two cores are shared with everything else that runs
Act = tuple[float, str, float]  # when, what, and a number that says how

# What can happen, and how often.
ACTS: Final[Mapping[str, int]] = {
    "sleep": 8,
    "wake": 10,
    "join": 4,
    "leave": 2,
    "reload": 5,
    "hold": 4,
    "kill_server": 2,
    "stop_server": 1,
    "freeze_server": 1,
    "lose_place": 1,
    "kill_postgres": 2,
    "terminate_walsender": 2,
    "terminate_snapshots": 2,
    "cut": 5,
    "stall": 3,
    "half_open": 3,
    "drop_after": 3,
    "alter": 4,
}


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

    def smaller(self) -> list[Plan]:
        """The same with half of the steps, and with half of what happens in them."""
        count = len(self.steps)
        halves = [self.steps[count // 2 :], self.steps[: count // 2]] if count > 1 else []
        thinner = [tuple(replace(step, acts=step.acts[first::2]) for step in self.steps) for first in (0, 1)]
        return [replace(self, steps=steps) for steps in [*halves, *thinner] if steps and steps != self.steps]


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

    def __str__(self) -> str:
        told = ", ".join(f"{count} {reason}" for reason, count in self.resyncs.most_common())
        done = ", ".join(f"{count} {what}" for what, count in self.acts.most_common())
        return (
            f"{self.commits} transactions, {self.states} states compared, {self.snapshots} of them whole;"
            f" resyncs: {told or 'none'}; {done}"
        )


class FailedError(AssertionError):
    """A round has failed; the text says what was wrong and what had happened."""


def make_plan(
    seed: str, capture: Capture, version: int, *, steps: int = 6, acts: Mapping[str, int] = ACTS
) -> Plan:
    chance = random.Random(seed)
    serve = {
        "replay-window-bytes": chance.choice(("64kB", "1MB", "64MiB")),
        "session-queue-bytes": chance.choice(("32kB", "4MiB")),
        "slow-client-seconds": "3",
        "max-transaction-bytes": chance.choice(("100kB", "64MiB", "64MiB")),
    }
    writers = chance.choice((1, 4, 12, 32))
    setting = Setting(capture, version, f"{seed}-schema", writers, serve, standby=chance.random() < 0.3)
    made: list[Step] = []
    for number in range(steps):
        seconds = chance.uniform(1.0, 3.0)
        happening = chance.choices(list(acts), list(acts.values()), k=chance.choice((1, 2, 4, 6, 8)))
        timed = sorted((chance.uniform(0, seconds), what, chance.random()) for what in happening)
        made.append(Step(f"{seed}-{number}", seconds, tuple(timed)))
    return Plan(seed, setting, chance.randint(2, 4), tuple(made))


class Round:
    """One run of a plan.

    Attributes:
        subscribers: The first is a strict client that never sleeps: its marker says how far the others have to come.
    """

    def __init__(self, plan: Plan, stage: Stage, patience_seconds: float) -> None:
        self.plan = plan
        self.stage = stage
        self._patience_seconds = patience_seconds
        self.report = Report()
        self.log: list[str] = []
        self.subscribers: list[Follower] = []
        self._chance = random.Random(f"{plan.seed}-round")
        self._retired: list[Journal] = []
        self._marked = 0
        self._began = time.monotonic()
        self._names = 0
        self._acts = Acts(self)

    def say(self, text: str) -> None:
        self.log.append(f"{time.monotonic() - self._began:8.3f} {text}")

    async def run(self) -> Report:
        stage = self.stage
        order = LogOrder() if stage.setting.capture == "wal" else OutboxOrder()
        self._oracle = await asyncio.to_thread(Oracle, stage.dsn, [*stage.tables, MARKER], order)
        try:
            await stage.execute("INSERT INTO marker VALUES (1, 0)")
            stage.start_server()
            stage.start_writers(self.plan.seed)
            await stage.server_ready()
            for kind in ("strict", "stream", "live", "mirror", *["strict"] * (self.plan.clients - 1)):
                self.join(kind)
            for number, step in enumerate(self.plan.steps):
                self.say(f"step {number}: {step}")
                await self._step(step)
                await self._barrier()
            return self.report
        finally:
            for subscriber in self.subscribers:
                await subscriber.sleep()
            await asyncio.to_thread(self._oracle.close)

    # Subscribers.

    def join(self, kind: str | None = None) -> None:
        """A new subscriber."""
        if len(self.subscribers) >= _MOST_SUBSCRIBERS:
            return
        kind = kind or self._chance.choice(("strict", "strict", "strict", "stream", "live", "mirror"))
        self._names += 1
        name = f"{kind} {self._names}"
        subscriber: Follower
        if kind == "strict":
            journals = [self._journal(f"{name}.{number}") for number in range(self._chance.randint(1, 4))]
            if self._chance.random() < 0.3:
                twin = journals[0]
                journals.append(Journal(f"{name}.twin", twin.table, twin.filter, twin.columns))
            journals.append(Journal(f"{name}.marker", MARKER, EVERYTHING, None))
            subscriber = StrictClient(name, self.stage.url.replace("http", "ws") + "/ws", journals)
        elif kind == "mirror":
            journal = self._journal(name)
            while "params" in journal.filter.wire:
                journal = self._journal(name)
            journal.columns = None
            subscriber = MirrorFollower(name, self.stage.url, journal, self.stage.folder)
        else:
            subscriber = (StreamFollower if kind == "stream" else LiveFollower)(
                name, self.stage.url, self._journal(name)
            )
        self.subscribers.append(subscriber)
        subscriber.wake()
        wishes = [(each.table.name, each.filter.wire, each.columns) for each in subscriber.journals]
        self.say(f"{name} joins: {wishes}")

    def retire(self, subscriber: Follower) -> None:
        """It will not come back; what it has shown is still compared."""
        self.subscribers.remove(subscriber)
        self._retired.extend(subscriber.journals)

    def _journal(self, name: str) -> Journal:
        table = self._chance.choice(self.stage.tables)
        if self.stage.setting.capture == "outbox":
            table = replace(table, full=True)  # triggers always know the old row
        columns = random_columns(self._chance, table) if table.key else None
        return Journal(name, table, random_filter(self._chance, table), columns)

    # What happens.

    async def _step(self, step: Step) -> None:
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
        await self._acts.do(what, how)

    # The barrier.

    async def _barrier(self) -> None:
        """Wait until everybody has everything, and compare."""
        stage = self.stage
        assert stage.writers is not None
        await stage.calm()
        self.report.commits = await asyncio.to_thread(stage.writers.pause)
        self._marked += 1
        await stage.execute("UPDATE marker SET n = %s", self._marked)
        columns = {table.name: await stage.columns(table.name) for table in (*stage.tables, MARKER)}
        self.say(f"barrier {self._marked}, {self.report.commits} transactions")
        await self._until_all_have(self._marked, columns)
        await asyncio.to_thread(self._compare, settled=True)
        for subscriber in self.subscribers:
            if subscriber.awake:
                for journal in subscriber.journals:
                    await asyncio.to_thread(journal.verify_end, self._oracle)

    async def _until_all_have(self, value: int, columns: Mapping[str, tuple[str, ...]]) -> None:
        deadline = time.monotonic() + self._patience_seconds
        marker = self.subscribers[0].journals[-1]
        target = ""
        while True:
            if not marker.invalid and not same_epoch(marker.position, target):
                target = marker.position if any(row["n"] >= value for row in marker.rows.values()) else ""
            behind = []
            for subscriber in self.subscribers:
                await subscriber.refresh()
                if subscriber.failure is not None:
                    await asyncio.to_thread(self._compare, settled=False)  # it may know what was wrong before
                    raise subscriber.failure
                if subscriber.awake and not all(
                    _has(journal, target, columns[journal.table.name]) for journal in subscriber.journals
                ):
                    behind.append(subscriber)
            if target and not behind:
                return
            if time.monotonic() > deadline:
                raise FailedError(
                    f"not live after {self._patience_seconds:g} s, marker at {target or 'none'}: "
                    + "; ".join(map(_describe, behind))
                )
            await asyncio.sleep(_LOOK_SECONDS)

    def _compare(self, *, settled: bool) -> None:
        """Compare what was shown since the last time; `settled` if every transaction has reached the stream."""
        oracle = self._oracle
        oracle.read()
        journals = [journal for subscriber in self.subscribers for journal in subscriber.journals]
        journals += self._retired
        oracle.evaluate(journal.shape for journal in journals)
        if settled:
            oracle.verify()
        for journal in journals:
            self.report.snapshots += sum(isinstance(entry, Loaded) for entry in journal.entries)
            self.report.states += journal.verify(oracle)
            self.report.resyncs += journal.resyncs
            journal.resyncs.clear()
        self._retired.clear()


def _has(journal: Journal, target: str, columns: tuple[str, ...]) -> bool:
    """Whether a journal has come as far as a position, with its table's present columns."""
    if journal.invalid or not same_epoch(journal.position, target) or journal.position < target:
        return False
    wanted = {
        name for name in columns if journal.columns is None or name in {*journal.columns, *journal.table.key}
    }
    return not journal.shown or set(journal.shown) == wanted


def _describe(subscriber: Follower) -> str:
    states = [
        f"{each.name} {'invalid' if each.invalid else each.position} {each.shown}"
        for each in subscriber.journals
    ]
    return f"{subscriber.name}: {states}"


async def run_plan(plan: Plan, *, patience_seconds: float = _BARRIER_SECONDS) -> Report:
    """Run a plan on a stage of its own.

    Args:
        patience_seconds: How long a barrier is waited at.

    Raises:
        FailedError: Something was wrong; the text has the plan, the log and the server's last words.
    """
    with tempfile.TemporaryDirectory(prefix="rowcast-faults-") as folder:
        path = Path(folder)
        path.chmod(0o777)  # PostgreSQL runs as another user where we are root  # noqa: ASYNC240 - of no duration
        stage = Stage(plan.setting, path)
        round_ = Round(plan, stage, patience_seconds)
        try:
            async with stage:
                return await round_.run()
        except Exception as error:
            clients = [each for each in round_.subscribers if isinstance(each, StrictClient)]
            lines = [
                f"{type(error).__name__}: {error}",
                *("the plan was:", str(plan), "what happened:", *round_.log[-80:]),
                *(line[:300] for client in clients for line in client.log[-10:]),
                *(
                    f"{each.name} heard {line}"[:500]
                    for each in clients
                    if each.name in str(error)
                    for line in each.recent
                ),
                *(
                    f"{each.name} said {line.rstrip()}"
                    for each in round_.subscribers
                    if isinstance(each, MirrorFollower)
                    for line in each.said[-10:]
                ),
                *("the server's last words:", *(line.rstrip() for line in stage.server_errors[-40:])),
            ]
            raise FailedError("\n".join(lines)) from error
