"""What can happen to a round while it writes: to its subscribers, to processes and to links.

The one rule of this room: an act is over when it returns, and leaves everything able to run.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg import errors
from tests.faults.oracle import PREFIX
from tests.faults.schema import literal
from tests.faults.strict import StrictClient

from rowcast.testing.proxy import FaultProxy

if TYPE_CHECKING:
    from tests.faults.campaign import Round
    from tests.faults.followers import Follower

_LINKS: Final = ("client", "capture", "query")
_LEAST_SUBSCRIBERS: Final = 3


class Acts:
    """The acts of one round. Each takes a number from 0 to 1 that says how."""

    def __init__(self, round_: Round) -> None:
        self._round = round_
        self._stage = round_.stage
        self._server = asyncio.Lock()
        self._postgres = asyncio.Lock()
        self._sleepers = asyncio.Lock()

    async def do(self, what: str, how: float) -> None:
        await getattr(self, what)(how)

    def _subscriber(self, how: float) -> Follower:
        """Any but the first, which always watches."""
        others = self._round.subscribers[1:]
        return others[int(how * len(others))]

    def _strict(self, how: float) -> StrictClient:
        strict = [each for each in self._round.subscribers if isinstance(each, StrictClient)]
        return strict[int(how * len(strict))]

    def _link(self, how: float) -> FaultProxy:
        return self._stage.links[_LINKS[int(how * len(_LINKS))]]

    # Subscribers.

    async def sleep(self, how: float) -> None:
        async with self._sleepers:
            await self._subscriber(how).sleep()

    async def wake(self, how: float) -> None:
        async with self._sleepers:
            self._subscriber(how).wake()

    async def join(self, how: float) -> None:
        self._round.join()

    async def leave(self, how: float) -> None:
        async with self._sleepers:
            if len(self._round.subscribers) > _LEAST_SUBSCRIBERS:
                subscriber = self._subscriber(how)
                await subscriber.sleep()
                self._round.retire(subscriber)

    async def reload(self, how: float) -> None:
        await self._strict(how).reload(int(how * 1000))

    async def hold(self, how: float) -> None:
        await self._strict(how).hold(_other(how) * 3)

    # Processes.

    async def kill_server(self, how: float) -> None:
        async with self._server:
            await self._stage.kill_server(how)

    async def stop_server(self, how: float) -> None:
        async with self._server:
            await self._stage.kill_server(how, signal.SIGTERM)

    async def freeze_server(self, how: float) -> None:
        async with self._server:
            await self._stage.freeze_server(how * 3)

    async def lose_place(self, how: float) -> None:
        """What the stream would go on from is lost: a new epoch begins."""
        if self._stage.setting.capture == "outbox":
            await self._fill_outbox()
        else:
            await self._drop_slot()

    async def _fill_outbox(self) -> None:
        """The outbox reaches its limit: triggers write no more until a server begins it anew."""
        async with self._postgres:
            await self._stage.execute("UPDATE rowcast.outbox_state SET limit_bytes = -1")
            await self._stage.execute("SELECT rowcast.outbox_check_size()")

    async def _drop_slot(self) -> None:
        """While no server holds it."""
        async with self._server, self._postgres:
            await self._stage.end_server(signal.SIGKILL)
            await self._stage.execute(
                "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots"
                " WHERE slot_name = 'rowcast' AND active"
            )
            await self._stage.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = 'rowcast'"
            )
            self._stage.start_server()

    async def kill_postgres(self, how: float) -> None:
        async with self._postgres:
            await self._stage.kill_postgres(how)

    async def terminate_walsender(self, how: float) -> None:
        async with self._postgres:
            await self._stage.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'rowcast'"
            )

    async def terminate_snapshots(self, how: float) -> None:
        async with self._postgres:
            await self._stage.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'rowcast snapshot'"
            )

    # Links.

    async def cut(self, how: float) -> None:
        self._link(how).cut()

    async def stall(self, how: float) -> None:
        link = self._link(how)
        link.stall()
        await asyncio.sleep(_other(how) * 2)
        link.resume()

    async def half_open(self, how: float) -> None:
        link = self._link(how)
        link.half_open()
        await asyncio.sleep(_other(how) * 2)
        link.resume()

    async def drop_after(self, how: float) -> None:
        link = self._link(how)
        link.drop_after(int(_other(how) ** 3 * 100_000))
        await asyncio.sleep(0.5)
        link.resume()

    # Tables.

    async def alter(self, how: float) -> None:
        """A column comes, goes, is renamed or gets another type; often with rows written in the same transaction."""
        async with self._postgres:
            try:
                await asyncio.to_thread(self._alter, random.Random(how))
            except (errors.LockNotAvailable, errors.DeadlockDetected, errors.QueryCanceled) as error:
                self._round.say(f"alter gave up: {type(error).__name__}")

    def _alter(self, chance: random.Random) -> None:
        table = chance.choice([each for each in self._stage.tables if each.key])
        options = "-c lock_timeout=3s -c statement_timeout=20s"
        with psycopg.connect(self._stage.dsn, options=options) as connection:
            columns: dict[str, str] = dict(self._stage.read_columns(connection, table.name))
            extra = [name for name in columns if name.startswith("extra")]
            keep = {name: name for name in columns}
            fill: dict[str, str | None] = {}
            work = chance.choice(("add", "add", "drop", "rename", "retype"))
            chosen = chance.choice(extra) if extra else ""
            fresh = f"extra_{chance.randrange(10_000)}"
            if work == "add" or not extra:
                kind, value = chance.choice((("integer", "7"), ("text", "it's"), ("text", None)))
                default = f" DEFAULT {literal(value)}" if value else ""
                statement = f"ADD COLUMN {fresh} {kind}{default}"
                columns[fresh], fill[fresh], chosen = kind, value, fresh
            elif work == "drop":
                statement = f"DROP COLUMN {chosen}"
                del columns[chosen], keep[chosen]
            elif work == "rename":
                statement = f"RENAME COLUMN {chosen} TO {fresh}"
                columns = {fresh if name == chosen else name: kind for name, kind in columns.items()}
                keep = {name: chosen if name == fresh else name for name in columns}
                chosen = fresh
            else:
                statement = f"ALTER COLUMN {chosen} TYPE text"
                columns[chosen] = "text"
            write = chance.random() < 0.5
            if write and chance.random() < 0.5:
                connection.execute(
                    f"UPDATE {table.name} SET org = (org + 1) %% 5 WHERE org = %s".encode(), (0,)
                )
            connection.execute(f"ALTER TABLE {table.name} {statement}".encode())
            told = {"table": table.name, "columns": list(columns.items()), "keep": keep, "fill": fill}
            connection.execute("SELECT pg_logical_emit_message(true, %s, %s)", (PREFIX, json.dumps(told)))
            if write:
                if chosen in columns:
                    connection.execute(f"UPDATE {table.name} SET {chosen} = '3' WHERE org = 1".encode())
                connection.execute(f"DELETE FROM {table.name} WHERE org = 2".encode())
        self._round.say(f"altered {table.name}: {statement}{', and wrote' if write else ''}")


def _other(how: float) -> float:
    """A second number from the first."""
    return how * 30 % 1
