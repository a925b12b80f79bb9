"""Mutations on their way: sending, retrying and asking, around the store's overlay.

The one rule of this room: it says what an attempt came to, and never what the rows are. Only a refusal takes a
mutation off the screen; whatever else goes wrong, it is sent again with the same id, and stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import uuid
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar

from rowcast.client.backoff import Backoff
from rowcast.client.events import MutationTold
from rowcast.client.outputs import AskStatus, MutationChanged, MutationState, Output, SendMutation
from rowcast.client.overlay import Patch, Strategy
from rowcast.client.rows import Key
from rowcast.client.store import Store
from rowcast.errors import ClientError

logger = logging.getLogger("rowcast.client")

MUTATION_HEADER: Final = "Rowcast-Mutation"
# With delays of up to 1, 2, 4 and 8 s between them: longer than a deploy, shorter than anybody waits.
ATTEMPTS: Final = 5
# Rowcast's server answers at once, unless it does not hear its database; it is not waited for.
_ASK_SECONDS: Final = 5.0

R = TypeVar("R")

# What HTTP means by "try again": time-outs, too early, too many, and whatever went wrong on the server's side.
_TRANSIENT_STATUSES: Final = frozenset({408, 425, 429})
# Their errors without a status are failures on the way.
_HTTP_LIBRARIES: Final = frozenset({"httpx", "httpcore", "aiohttp", "requests", "urllib3"})

# Sends a mutation to the application's server, under the id given, which belongs into the header `Rowcast-Mutation`.
Sender: TypeAlias = Callable[[str], Awaitable[R]]
# What the application's server says became of a mutation; unknown: it has never seen it.
Status: TypeAlias = Literal["committed", "unknown", "rejected"]
StatusAsker: TypeAlias = Callable[[str], Awaitable[Status]]


class RejectedError(ClientError):
    """The application's server refused a mutation; `cause` is what the sender raised.

    A sender may raise it itself.
    """

    def __init__(self, message: str, cause: BaseException | None = None) -> None:
        super().__init__(message)
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Answer:
    """What a sender may return to tell what the server has told of the commit.

    Attributes:
        value: Whatever else it was.
        txid: Of the transaction: confirms without `rowcast.confirm()` on the server.
        position: One at or after the commit.
        keys: Made-up key → the server's key of new rows.
    """

    value: Any = None
    txid: int | None = None
    position: str | None = None
    keys: Mapping[Key, Key] | None = None


class MutationHandle(Generic[R]):
    """A mutation on its way.

    Awaiting it waits until the stream has confirmed it, and gives what the sender returned; None where that was
    lost on the way. Cancelling the wait does not cancel the mutation.
    """

    def __init__(self, mutations: Mutations, identifier: str, send: Sender[R], attempts: int) -> None:
        self.id: Final = identifier
        self.state: MutationState = "pending"
        self.error: RejectedError | None = None
        self.send: Final = send
        self.attempts_left = attempts
        self.backoff = Backoff(random.random)
        self.before: list[MutationHandle[Any]] = []  # edits of the same rows that go first
        self.gone = asyncio.Event()  # out of the way of those behind it
        self.task: asyncio.Task[None] | None = None  # the attempt, or the wait for the next
        self.sending = False
        self.told: asyncio.Future[MutationTold] | None = None  # what Rowcast's server answers
        self._attempts = attempts
        self._mutations = mutations
        self._answer: asyncio.Future[R | None] = _quiet_future()
        self._end: asyncio.Future[None] = _quiet_future()
        self._callbacks: list[Callable[[MutationState], object]] = []

    def __await__(self) -> Generator[Any, None, R | None]:
        """Wait for the stream's confirmation.

        Raises:
            RejectedError: The application's server refused it.
            ClientError: The client was closed before anybody knew.
        """
        return self._wait().__await__()

    async def _wait(self) -> R | None:
        await asyncio.shield(self._end)
        return await asyncio.shield(self._answer)

    async def answered(self) -> R | None:
        """Wait for the application's server only, not for the stream; raises like awaiting the whole."""
        return await asyncio.shield(self._answer)

    def on_state(self, callback: Callable[[MutationState], object]) -> None:
        """Call a function with every new state; an error in it is logged."""
        self._callbacks.append(callback)

    def retry(self) -> None:
        """Send it again, with the same id: a rejected one, or one of which nobody knows what became.

        Raises:
            ClientError: It is confirmed.
        """
        self.attempts_left = self._attempts
        self.backoff.reset()
        self._mutations.retry(self)

    # What `Mutations` tells it.

    @property
    def has_answer(self) -> bool:
        return self._answer.done()

    def begin_again(self) -> None:
        self.error = None
        self.gone.clear()
        if self._answer.done():
            self._answer = _quiet_future()
        if self._end.done():
            self._end = _quiet_future()

    def answer(self, value: R | None) -> None:
        self.gone.set()
        if not self._answer.done():
            self._answer.set_result(value)

    def change(self, state: MutationState, error: object = None) -> None:
        self.state = state
        if state == "confirmed":
            if not self._end.done():
                self._end.set_result(None)
            if not self.sending:  # its answer was lost, and nobody need ask any more
                if self.task is not None:
                    self.task.cancel()
                self.answer(None)
        elif state == "rejected":
            cause = error if isinstance(error, BaseException) else None
            self.error = cause if isinstance(cause, RejectedError) else RejectedError(str(error), cause)
            self.fail(self.error)
        for callback in tuple(self._callbacks):
            try:
                callback(state)
            except Exception:
                logger.exception("a callback failed")

    def fail(self, error: ClientError) -> None:
        self.gone.set()
        for future in (self._answer, self._end):
            if not future.done():
                future.set_exception(error)


class Mutations:
    """All mutations of one client.

    Args:
        store: Where they lie over the rows.
        fulfil: Takes what the store hands back.
        now: Monotonic seconds.
        status: Asks the application's server what became of a mutation.
        ask: Without `status`, asks Rowcast's; `told()` takes the answer. Returns False where nobody can be asked.
        beginning: What ids begin with, before a dot.
    """

    def __init__(
        self,
        store: Store,
        fulfil: Callable[[Sequence[Output]], None],
        now: Callable[[], float],
        status: StatusAsker | None,
        ask: Callable[[str], bool],
        beginning: str,
    ) -> None:
        self._ask_rowcast = ask
        self._beginning = beginning
        self._store = store
        self._fulfil = fulfil
        self._now = now
        self._status = status
        self._handles: dict[str, MutationHandle[Any]] = {}
        self._newest: dict[tuple[str, Key], MutationHandle[Any]] = {}  # of each row that has one open
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(
        self, patches: Sequence[Patch], send: Sender[R], strategy: Strategy, attempts: int, *, queued: bool
    ) -> MutationHandle[R]:
        """Show a mutation and send it."""
        # What comes after the dot is random as well: whoever knows an id can ask for what became of it.
        identifier = f"{self._beginning}.{uuid.uuid4()}"
        handle: MutationHandle[R] = MutationHandle(self, identifier, send, attempts)
        outputs = self._store.mutate(handle.id, patches, strategy=strategy, queued=queued)
        self._handles[handle.id] = handle
        for patch in patches:
            # Edits of one row go one after the other: two requests could overtake each other.
            before = self._newest.get((patch.subscription, patch.key))
            if before is not None and before is not handle:
                handle.before.append(before)
            self._newest[patch.subscription, patch.key] = handle
        self._fulfil(outputs)
        return handle

    def retry(self, handle: MutationHandle[Any]) -> None:
        outputs = self._store.retry(handle.id)
        handle.begin_again()
        self._handles[handle.id] = handle
        self._fulfil(outputs)

    def fulfil(self, output: SendMutation | AskStatus | MutationChanged) -> None:
        """Do what the store asks for; mutations that are not this client's are somebody else's."""
        handle = self._handles.get(output.mutation)
        if handle is None:
            return
        if isinstance(output, MutationChanged):
            if output.state in {"confirmed", "rejected"}:
                self._forget(handle)
            handle.change(output.state, output.error)
        elif handle.task is not None:
            return  # an attempt is on its way, or the next is planned
        elif isinstance(output, SendMutation):
            self._start(handle, self._send)
        else:
            self._ask(handle)

    def told(self, event: MutationTold) -> None:
        """What Rowcast's server knows of a mutation."""
        handle = self._handles.get(event.mutation)
        if handle is not None and handle.told is not None and not handle.told.done():
            handle.told.set_result(event)

    async def close(self) -> None:
        """End every attempt; what became of the mutations nobody here will know."""
        for handle in list(self._handles.values()):
            handle.fail(ClientError(f"the client was closed before mutation {handle.id} was confirmed"))
        self._handles.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(
        self,
        handle: MutationHandle[Any],
        work: Callable[[MutationHandle[Any]], Awaitable[Sequence[Output]]],
    ) -> None:
        """Run one piece of work for a mutation; there is never more than one at a time."""

        async def run() -> None:
            outputs = await work(handle)
            handle.task = None
            self._fulfil(outputs)

        handle.task = asyncio.get_running_loop().create_task(run())
        self._tasks.add(handle.task)
        handle.task.add_done_callback(self._tasks.discard)

    async def _send(self, handle: MutationHandle[Any]) -> Sequence[Output]:
        for each in handle.before:
            await each.gone.wait()
        handle.before.clear()
        self._fulfil(self._store.sent(handle.id, self._now()))
        handle.attempts_left -= 1
        try:
            handle.sending = True
            value: object = await handle.send(handle.id)
        except Exception as error:  # noqa: BLE001 - whatever the application raises is an outcome
            if not _is_transient(error):
                return self._refused(handle, error)
            logger.info("mutation %s: no answer (%r)", handle.id, error)
            if handle.state == "confirmed":
                handle.answer(None)
            return self._store.lost(handle.id, self._now())
        finally:
            handle.sending = False
        handle.answer(value)
        answer = value if isinstance(value, Answer) else Answer(value)
        return self._store.answered(
            handle.id, self._now(), txid=answer.txid, position=answer.position, keys=answer.keys
        )

    def _refused(self, handle: MutationHandle[Any], error: Exception) -> Sequence[Output]:
        if handle.state == "confirmed":  # the stream has it, whatever the answer says
            handle.answer(None)
        return self._store.rejected(handle.id, error)

    def _ask(self, handle: MutationHandle[Any]) -> None:
        if handle.has_answer:
            self._fulfil(self._store.status(handle.id, "committed", self._now()))
        elif self._status is not None:
            self._start(handle, partial(self._ask_server, self._status))
        else:
            self._start(handle, self._find_out)

    async def _ask_server(self, status: StatusAsker, handle: MutationHandle[Any]) -> Sequence[Output]:
        try:
            told = await status(handle.id)
        except Exception as error:  # noqa: BLE001 - whatever the application raises is an outcome
            logger.info("mutation %s: its status could not be asked (%r)", handle.id, error)
            return []  # the store asks again
        if told == "committed":
            handle.answer(None)
        return self._store.status(handle.id, told, self._now())

    async def _find_out(self, handle: MutationHandle[Any]) -> Sequence[Output]:
        """Ask Rowcast's server, which knows what has been confirmed; where it knows nothing, sending again asks."""
        if handle.attempts_left > 0:
            await asyncio.sleep(handle.backoff.next_delay() or 0.0)
        handle.told = asyncio.get_running_loop().create_future()
        if self._ask_rowcast(handle.id):
            with contextlib.suppress(TimeoutError):
                told = await asyncio.wait_for(handle.told, _ASK_SECONDS)
                if told.state == "committed":
                    handle.answer(None)
                    return self._store.status(handle.id, "committed", self._now(), position=told.position)
        if handle.attempts_left > 0:
            return self._store.status(handle.id, "unknown", self._now())
        handle.gone.set()  # nobody knows; those behind it need not wait for ever
        return []

    def _forget(self, handle: MutationHandle[Any]) -> None:
        self._handles.pop(handle.id, None)
        for row in [row for row, newest in self._newest.items() if newest is handle]:
            del self._newest[row]


def _is_transient(error: Exception) -> bool:
    """Whether it says nothing about what the application's server thinks of the mutation."""
    if isinstance(error, RejectedError):
        return False
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None) or getattr(error, "status", None)
    if isinstance(status, int):
        return status >= 500 or status in _TRANSIENT_STATUSES
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError | TimeoutError) or library in _HTTP_LIBRARIES


def _quiet_future() -> asyncio.Future[Any]:
    """A future whose error nobody need look at."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future
