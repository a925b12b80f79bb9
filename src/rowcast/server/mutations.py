"""What became of a mutation whose answer was lost: `{"type":"mutation","id":…}`.

The one rule of this room: it says "committed" only of what is, and then with a position at or after the commit, so that
a client that has come so far has seen it. Whoever asks has to know the id.

What the recent stream has confirmed is known here. Of the rest the database is asked, where the application keeps marks
there (`rowcast.contrib.idempotency`): one question at a time, for all who have asked meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import psycopg

from rowcast.capture.connection import one_line
from rowcast.errors import CaptureError, ProtocolError
from rowcast.hub import Hub
from rowcast.model import Position
from rowcast.snapshot import SnapshotReader

if TYPE_CHECKING:
    from rowcast.server.connection import ClientConnection

logger = logging.getLogger("rowcast.server")

# Soon enough for people, seldom enough for a database in trouble.
_RETRY_SECONDS: Final = 1.0
# Questions that wait for the database; each is an id of up to 200 characters.
_MAX_ASKED: Final = 10_000


class Mutations:
    """Answers questions about mutations.

    Args:
        reader: Asks the database.
        hub: The stream.
        mark: As for `Snapshots`.
    """

    def __init__(
        self, reader: SnapshotReader, hub: Hub, mark: Callable[[], asyncio.Future[Position]]
    ) -> None:
        self._reader = reader
        self._hub = hub
        self._mark = mark
        self._asked: dict[str, dict[ClientConnection, None]] = {}
        self._task: asyncio.Task[None] | None = None

    def ask(self, connection: ClientConnection, mutation: str) -> None:
        """Tell a client what became of a mutation, as soon as that can be known."""
        position = self._hub.confirmed_at(mutation)
        if position is not None:
            connection.reply(connection.session.mutation(mutation, position))
        elif len(self._asked) >= _MAX_ASKED:
            message = "too many questions about mutations wait for the database: ask again later"
            connection.reply(connection.session.error(ProtocolError("rate_limited", message)))
        else:
            self._asked.setdefault(mutation, {})[connection] = None
            if self._task is None:
                self._task = asyncio.create_task(self._answer(), name="rowcast mutations")

    async def _answer(self) -> None:
        try:
            while self._asked:
                asked, self._asked = self._asked, {}
                done, position = await self._look_up(list(asked))
                for mutation, connections in asked.items():
                    # It may have come by the stream while the database was asked.
                    known = self._hub.confirmed_at(mutation) or (position if mutation in done else None)
                    for connection in connections:
                        if connection in connection.service.connections:
                            connection.reply(connection.session.mutation(mutation, known))
        finally:
            self._task = None

    async def _look_up(self, mutations: Sequence[str]) -> tuple[frozenset[str], Position | None]:
        while True:
            try:
                done = await self._reader.done(mutations)
                return done, await self._mark() if done else None
            except psycopg.ProgrammingError:
                return frozenset(), None  # nobody keeps such marks here
            except (psycopg.Error, CaptureError) as error:
                logger.info("what became of mutations cannot be asked, trying again: %s", one_line(error))
                await asyncio.sleep(_RETRY_SECONDS)

    async def close(self) -> None:
        """Leave the rest unanswered."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
