"""Keeps the cache over a restart: dehydrate to plain data, hydrate from it, and a file to hold it."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self, cast

import msgspec

from .clock import Timer
from .mutation import Mutation
from .mutation_state import MutationState
from .options import InfiniteData
from .query import Query
from .query_client import QueryClient
from .query_state import QueryState

logger: Final = logging.getLogger("rowcast.client.cache")


class DehydratedQuery(msgspec.Struct, frozen=True, kw_only=True):
    """One query as plain data."""

    key: list[Any]
    data: Any
    data_updated_at: float
    data_update_count: int = 0
    is_invalidated: bool = False
    infinite: bool = False
    meta: dict[str, Any] = {}


class DehydratedMutation(msgspec.Struct, frozen=True, kw_only=True):
    """One paused mutation as plain data; its function comes from `set_mutation_defaults`."""

    key: list[Any]
    variables: Any
    context: Any = None
    submitted_at: float = 0.0
    scope: str | None = None
    meta: dict[str, Any] = {}


class DehydratedState(msgspec.Struct, frozen=True, kw_only=True):
    """A cache as plain data."""

    queries: list[DehydratedQuery] = []
    mutations: list[DehydratedMutation] = []


def dehydrate(
    client: QueryClient,
    *,
    should_dehydrate_query: Callable[[Query[Any]], bool] = lambda query: query.state.status == "success",
    should_dehydrate_mutation: Callable[[Mutation[Any, Any]], bool] = lambda mutation: (
        mutation.state.is_paused
    ),
    serialize_data: Callable[[Any], Any] = lambda data: data,
) -> DehydratedState:
    """The cache as plain data.

    Args:
        client: Whose cache.
        should_dehydrate_query: Which queries; by default those that have succeeded.
        should_dehydrate_mutation: Which mutations; by default those that are paused. Those without a key are left out,
            as nobody could find their function again.
        serialize_data: Turns a query's data into something that JSON has.
    """
    queries = [
        DehydratedQuery(
            key=list(query.key),
            data=serialize_data(query.base),
            data_updated_at=query.state.data_updated_at,
            data_update_count=query.state.data_update_count,
            is_invalidated=query.state.is_invalidated,
            infinite=query.options.infinite,
            meta=dict(query.options.meta),
        )
        for query in client.query_cache
        if query.state.data is not None and should_dehydrate_query(query)
    ]
    mutations = [
        DehydratedMutation(
            key=list(mutation.options.key),
            variables=mutation.state.variables,
            context=mutation.state.context,
            submitted_at=mutation.state.submitted_at,
            scope=mutation.options.scope,
            meta=dict(mutation.options.meta),
        )
        for mutation in client.mutation_cache
        if mutation.options.key is not None and should_dehydrate_mutation(mutation)
    ]
    return DehydratedState(queries=queries, mutations=mutations)


def hydrate(
    client: QueryClient, state: DehydratedState, *, deserialize_data: Callable[[Any], Any] = lambda data: data
) -> None:
    """Put dehydrated queries and mutations into a cache; a query that has newer data keeps it.

    Mutations come back paused: `client.resume_paused_mutations()` runs them.

    Args:
        client: Whose cache.
        state: What `dehydrate` has made.
        deserialize_data: Undoes `serialize_data`.
    """
    for query in state.queries:
        data = deserialize_data(query.data)
        restored: QueryState[Any] = QueryState(
            data=InfiniteData(*cast("list[Any]", data)) if query.infinite else data,
            data_updated_at=query.data_updated_at,
            data_update_count=query.data_update_count,
            is_invalidated=query.is_invalidated,
            status="success",
        )
        existing = client.query_cache.find(query.key)
        if existing is None:
            options = {"key": query.key, "meta": query.meta, "infinite": query.infinite}
            client.query_cache.build(client, client.resolve_query_options(options), restored)
        elif query.data_updated_at > existing.state.data_updated_at:
            fetch_status = existing.state.fetch_status
            existing.set_state(msgspec.structs.replace(restored, fetch_status=fetch_status))
    for mutation in state.mutations:
        options = {"key": mutation.key, "scope": mutation.scope, "meta": mutation.meta}
        paused: MutationState[Any, Any] = MutationState(
            status="pending",
            is_paused=True,
            variables=mutation.variables,
            context=mutation.context,
            submitted_at=mutation.submitted_at,
        )
        client.mutation_cache.build(client, client.resolve_mutation_options(options), paused)


class Storage(Protocol):
    """Somewhere to keep a cache."""

    async def load(self) -> bytes | None:
        """What was saved last; None if nothing was."""
        ...

    async def save(self, content: bytes) -> None:
        """Keep this instead of what was saved before: all of it or nothing."""
        ...

    async def remove(self) -> None:
        """Forget what was saved."""
        ...


class FileStorage:
    """Keeps a cache in a file, written by a thread and put in place at once.

    Args:
        path: Where; its directory must exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    async def load(self) -> bytes | None:
        return await asyncio.to_thread(self._load)

    async def save(self, content: bytes) -> None:
        await asyncio.to_thread(self._save, content)

    async def remove(self) -> None:
        await asyncio.to_thread(self._path.unlink, missing_ok=True)

    def _load(self) -> bytes | None:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None

    def _save(self, content: bytes) -> None:
        descriptor, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            Path(name).replace(self._path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


class _Envelope(msgspec.Struct, frozen=True):
    buster: str
    saved_at: float
    state: DehydratedState


# As TanStack Query: after a day, what was on the screen yesterday confuses more than an empty one.
DEFAULT_MAXIMUM_AGE_SECONDS: Final = 86_400.0


class CachePersistence:
    """Restores a cache from storage, and saves it while it changes: `async with CachePersistence(client, storage):`.

    Args:
        client: Whose cache.
        storage: Where to keep it.
        maximum_age_seconds: Saved state older than this is thrown away.
        buster: Saved state with another buster is thrown away: change it with the form of your data.
        throttle_seconds: How often to save at most.
        dehydrate_with: Makes the plain data; pass a function of your own to choose queries.
    """

    def __init__(
        self,
        client: QueryClient,
        storage: Storage,
        *,
        maximum_age_seconds: float = DEFAULT_MAXIMUM_AGE_SECONDS,
        buster: str = "",
        throttle_seconds: float = 1.0,
        dehydrate_with: Callable[[QueryClient], DehydratedState] = dehydrate,
    ) -> None:
        self._client = client
        self._storage = storage
        self._maximum_age_seconds = maximum_age_seconds
        self._buster = buster
        self._throttle_seconds = throttle_seconds
        self._dehydrate = dehydrate_with
        self._timer: Timer | None = None
        self._writing = asyncio.Lock()
        self._saving: asyncio.Task[None] | None = None  # kept, as the loop holds tasks weakly
        self._unsubscribe: list[Callable[[], None]] = []

    async def __aenter__(self) -> Self:
        await self.restore()
        self._unsubscribe = [
            self._client.query_cache.subscribe(lambda _: self._changed()),
            self._client.mutation_cache.subscribe(lambda _: self._changed()),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        await self.flush()

    async def restore(self) -> None:
        """Hydrate the cache from what was saved, if that is of use."""
        content = await self._storage.load()
        if content is None:
            return
        try:
            envelope = msgspec.json.decode(content, type=_Envelope)
        except msgspec.MsgspecError:
            logger.warning("the saved query cache cannot be read, and is thrown away")
            await self._storage.remove()
            return
        age_seconds = self._client.clock.now() - envelope.saved_at
        if envelope.buster != self._buster or age_seconds > self._maximum_age_seconds:
            await self._storage.remove()
        else:
            hydrate(self._client, envelope.state)

    async def flush(self) -> None:
        """Save now, after a save that is under way.

        Raises:
            OSError: What the storage raised.
            TypeError: Something in the cache is nothing that JSON has; see `serialize_data` of `dehydrate`.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        async with self._writing:
            envelope = _Envelope(self._buster, self._client.clock.now(), self._dehydrate(self._client))
            await self._storage.save(msgspec.json.encode(envelope))

    def _changed(self) -> None:
        if self._timer is None:
            self._timer = self._client.clock.call_later(self._throttle_seconds, self._begin_saving)

    def _begin_saving(self) -> None:
        self._timer = None
        self._saving = asyncio.get_running_loop().create_task(self._save_or_log())

    async def _save_or_log(self) -> None:
        try:
            await self.flush()
        except Exception:
            logger.exception("the query cache could not be saved; it is tried again with its next change")
