"""What the outbox capture knows as long as one connection lives."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import psycopg

from rowcast.capture.line import Line
from rowcast.capture.outbox_rows import Member
from rowcast.capture.outbox_store import BatchRecord, Snapshot
from rowcast.model import Event, Table


class OutboxLine(Line):
    """A connection that leads: the only one that writes batches down.

    Attributes:
        epoch: The first part of every position.
        floor: Number of the oldest batch that is written down.
        newest: The newest one.
        overflow: Value of rowcast.outbox_overflow; another one means that rows are missing.
        covered: OIDs of the tables with triggers, as of the newest batch.
        tables: The watched tables, as of then.
        members: They and their partitions.
        changed: For each of these, the latest batch in which its columns were found changed.
        replaced: Tables whose new columns were announced with the newest batch.
        announced: Events that go before the next batch.
        holds_bell: Every transaction rings.
        pause_seconds: How long the last look was followed by a rest, or will be.
        purging: What this snapshot sees is being removed; no transaction below `purged` has rows any more.
        look_at: When the next heartbeat is due, and `purge_at` the next purge, in monotonic seconds.
    """

    def __init__(
        self, connection: psycopg.AsyncConnection[Any], rung: asyncio.Event, tables: Mapping[int, Table]
    ) -> None:
        super().__init__(connection, rung)
        self.epoch = ""
        self.floor = 0
        self.newest = BatchRecord(0, Snapshot("0:0:"), Snapshot("0:0:"), 0, ())
        self.overflow = 0
        self.backend_pid: int | None = None
        self.covered: frozenset[int] = frozenset()
        self.tables = tables
        self.members: Mapping[int, Member] = {}
        self.changed: dict[int, int] = {}
        self.replaced: frozenset[int] = frozenset()
        self.announced: list[Event] = []
        self.may_sleep = False
        self.holds_bell = False
        self.pause_seconds = 0.0
        self.purged = 0
        self.purging: Snapshot | None = None
        self.purge_at = 0.0
        self.look_at = 0.0
