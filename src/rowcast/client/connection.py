"""The connection: drives a session over real links, in one task of an event loop.

The one rule of this room: it decides nothing. The session says when to connect, what to send and when to give a
link up; the ladder says over what; here are only the sockets, the clock and the tasks, and all of them end with
`close()`.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import random as random_module
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Final, Self, TypeAlias

from rowcast._version import __version__
from rowcast.client.events import Event, Interest
from rowcast.client.ladder import LADDER, Ladder
from rowcast.client.session import WELCOME_SECONDS, Session
from rowcast.client.state import ConnectionState, TransportName
from rowcast.client.transports import Endpoints, Link, LinkEndedError, open_link
from rowcast.errors import ClientError

logger = logging.getLogger("rowcast.client")

# The largest row that PostgreSQL's wire protocol carries is 1 GB; this is what a client should have to hold at once.
MAX_FRAME_BYTES: Final = 256 * 1024 * 1024
_READ_BURST: Final = 64  # frames read in one go before other tasks get their turn
_NO_CLOSE_FRAME: Final = 1006

# A token, or what gets one: called before every attempt to connect, and when the present token is about to expire.
TokenSource: TypeAlias = str | Callable[[], str | Awaitable[str]] | None


def make_beginning() -> str:
    """What the ids of one client's mutations begin with, before a dot."""
    return secrets.token_hex(8)


class Connection:
    """A connection that comes back by itself. Use it with `async with`.

    Args:
        url: The server's address, such as http://host:8000 or ws://host:8000/ws.
        sink: Gets the events of each step, in the event loop. What belongs together comes together.
        token: Credentials: a string, or a function, sync or async, that returns one.
        headers: HTTP headers for every request.
        transports: The transports allowed, best first.
        attempts: Give up after so many failed attempts in a row; None for never.
        old_rows: Whether changes carry the whole old row (over WebSocket); for callers that do not keep rows.
        clock: Monotonic seconds.
        mutations: What the ids of mutations begin with, up to their first dot, whose confirms this connection waits for;
            None: it hears of all. `make_beginning()` makes one that nobody else has.
        random: Returns a float in [0, 1).

    Raises:
        ClientError: The address is none.
    """

    def __init__(
        self,
        url: str,
        *,
        sink: Callable[[Sequence[Event]], None],
        token: TokenSource = None,
        headers: Mapping[str, str] | None = None,
        transports: Sequence[TransportName] = LADDER,
        attempts: int | None = None,
        old_rows: bool = False,
        mutations: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = random_module.random,
    ) -> None:
        self._endpoints = Endpoints.of(url, headers)
        self._sink = sink
        self._token = token
        self._clock = clock
        self._ladder = Ladder(transports, random)
        self._session = Session(
            client=f"rowcast-python/{__version__}",
            random=random,
            attempts=attempts,
            renewable=callable(token),
            old_rows=old_rows,
            mutations=mutations,
        )
        self._kicked = asyncio.Event()  # something changed that the driver must look at
        self._awaited = float("inf")  # the deadline that the driver waits for
        self._sendable = asyncio.Event()
        self._readable = asyncio.Event()
        self._readable.set()
        self._renewal: asyncio.Task[None] | None = None
        self._driver: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def start(self) -> None:
        """Begin to connect, in the running event loop."""
        if self._driver is None:
            self._driver = asyncio.get_running_loop().create_task(self._run(), name="rowcast connection")

    async def close(self) -> None:
        """End the connection for good, and every task of it. Safe to call twice.

        Raises:
            Exception: What the sink raised, if that ended the connection before.
        """
        self._session.close(self._clock())
        self._deliver()
        driver, self._driver = self._driver, None
        tasks = [task for task in (driver, self._renewal) if task is not None]
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome

    @property
    def state(self) -> ConnectionState:
        """How the connection is doing now; changes come as `StateChanged` events."""
        return self._session.state(self._clock())

    def subscribe(self, subscription: str, interest: Interest) -> None:
        """Subscribe, under an id of the caller's choice; events follow as soon as there is a link."""
        self._session.add(subscription, interest, self._clock())
        self._kicked.set()

    def unsubscribe(self, subscription: str) -> None:
        """End a subscription: no event of it comes any more."""
        self._session.remove(subscription)
        self._kicked.set()

    def ask_mutation(self, mutation: str) -> bool:
        """Ask what became of a mutation; False where nobody can be asked. The answer is a `MutationTold`, if one comes."""
        asked = self._session.ask_mutation(mutation)
        self._kicked.set()
        return asked

    def refetch(self, subscription: str) -> None:
        """Take a new snapshot for a subscription."""
        self._session.refetch(subscription, self._clock())
        self._kicked.set()

    def reconnect(self, reason: str = "asked for") -> None:
        """Try now rather than later; wishes are merged, and a link that is up is probed, not dropped."""
        self._session.reconnect(self._clock(), reason)
        self._kicked.set()

    def set_online(self, *, online: bool) -> None:
        """Tell whether there is a network: without one nothing is tried, with one it is tried at once."""
        self._session.set_online(self._clock(), online=online)
        self._kicked.set()

    def pause_reading(self) -> None:
        """Take no frames for now: the sink has more than it can use, so the server shall hold back."""
        self._readable.clear()
        self._session.pause()

    def resume_reading(self) -> None:
        """Take frames again."""
        if not self._readable.is_set():
            self._readable.set()
            self._session.resume(self._clock())
            self._kicked.set()

    async def _run(self) -> None:
        try:
            await self._drive()
        except Exception as error:
            logger.exception("the connection ends by an error in this program")
            self._session.close(self._clock(), f"an error in this program: {error!r}")
            self._deliver()
            raise

    async def _drive(self) -> None:
        session = self._session
        while not session.closed:
            if not session.must_connect(self._clock()):
                await self._wait_for_kick(session.deadline())
                self._deliver()
                continue
            session.link_opening(self._clock())
            self._deliver()
            try:
                token = await self._get_token()
                link = await open_link(
                    self._ladder.current, self._endpoints, token, max_frame_bytes=MAX_FRAME_BYTES
                )
            except LinkEndedError as error:
                # The first of an outage is worth a line that is seen without any settings; the next ones say the same.
                level = logging.WARNING if session.state(self._clock()).attempt == 0 else logging.INFO
                logger.log(level, "no link over %s: %s", self._ladder.current, error.reason)
                self._ladder.failed(error.failure)
                session.link_lost(self._clock(), error.code, error.reason)
            except ClientError as error:
                session.close(self._clock(), str(error))
            else:
                await self._carry(link, token)
            self._deliver()

    async def _carry(self, link: Link, token: str | None) -> None:
        """Let links carry the session, one after the other, until one is lost."""
        session = self._session
        ended: LinkEndedError | None = None
        next_link: Link | None = link
        while next_link is not None:
            link, next_link = next_link, None
            try:
                if not session.link_opened(self._clock(), link.name, token):
                    return
                ended, next_link = await self._first_end(
                    self._read(link), self._write(link), self._watch(), self._climb()
                )
            finally:
                await link.close(politely=ended is None)
        if ended is not None:
            self._lose(ended)

    async def _first_end(
        self, *work: Coroutine[None, None, Link | None]
    ) -> tuple[LinkEndedError | None, Link | None]:
        """Run a link's tasks until one ends; returns what ended the link, or the link that takes its place."""
        tasks = [asyncio.create_task(each) for each in work]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        ended: LinkEndedError | None = None
        better: Link | None = None
        for outcome in outcomes:
            if isinstance(outcome, LinkEndedError):
                ended = outcome if ended is None or outcome.code is not None else ended
            elif isinstance(outcome, asyncio.CancelledError):
                continue
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                better = outcome
        return ended, better

    def _lose(self, ended: LinkEndedError) -> None:
        session = self._session
        reason = session.must_disconnect or ended.reason
        logger.info("link over %s lost: %s (code %s)", self._ladder.current, reason, ended.code)
        if session.welcomed:
            self._ladder.worked()
        elif session.unanswered and session.must_disconnect is not None:
            self._ladder.failed("unsuitable")  # it let us connect, and then nothing came through
        elif session.unanswered:
            self._ladder.failed(ended.failure if ended.code in {None, _NO_CLOSE_FRAME} else "away")
        session.link_lost(self._clock(), ended.code, ended.reason)

    async def _read(self, link: Link) -> None:
        session, clock = self._session, self._clock
        while True:
            for _ in range(_READ_BURST):
                if not self._readable.is_set():
                    await self._readable.wait()
                frame, lane = await link.receive()
                session.frame_received(frame, clock(), lane)
                self._step()
            await asyncio.sleep(0)

    async def _write(self, link: Link) -> None:
        while True:
            self._sendable.clear()
            for frame in self._session.take_frames():
                await link.send(frame)
            await self._sendable.wait()

    async def _watch(self) -> None:
        """Keep the session's deadlines, and look after what the application changed."""
        while True:
            await self._wait_for_kick(self._session.deadline())
            self._session.tick(self._clock())
            self._step()

    async def _climb(self) -> Link | None:
        """Try the transports above from time to time; returns the first that works."""
        while self._ladder.better:
            await asyncio.sleep(self._ladder.next_climb_delay())
            for transport in self._ladder.better:
                with contextlib.suppress(LinkEndedError, TimeoutError):
                    link = await self._try(transport)
                    self._ladder.climb(transport)
                    return link
        await (
            asyncio.get_running_loop().create_future()
        )  # at the top: nothing to do for as long as the link lives
        return None

    async def _try(self, transport: TransportName) -> Link:
        """A link over a transport that has proved, on a link of its own, to carry frames both ways."""
        token = await self._get_token()
        trial = await open_link(transport, self._endpoints, token, max_frame_bytes=MAX_FRAME_BYTES)
        try:
            async with asyncio.timeout(WELCOME_SECONDS):
                hello = {"type": "hello", "version": 1, "client": "rowcast-python", "token": token}
                await trial.send({name: value for name, value in hello.items() if value is not None})
                while (await trial.receive())[0]["type"] != "welcome":
                    pass
        finally:
            await trial.close(politely=True)
        return await open_link(transport, self._endpoints, token, max_frame_bytes=MAX_FRAME_BYTES)

    def _step(self) -> None:
        """After each input: tell the application, wake the writer, end the link where it must end."""
        self._deliver()
        session = self._session
        if session.must_disconnect is not None:
            raise LinkEndedError("")
        if session.needs_token and self._renewal is None:
            self._renewal = asyncio.create_task(self._renew())
        self._sendable.set()
        deadline = session.deadline()
        if deadline is not None and deadline < self._awaited:
            self._kicked.set()

    def _deliver(self) -> None:
        events = self._session.take_events()
        if events:
            self._sink(events)

    async def _wait_for_kick(self, deadline: float | None) -> None:
        self._awaited = float("inf") if deadline is None else deadline
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if deadline is None else max(0.0, deadline - self._clock())):
                await self._kicked.wait()
        self._kicked.clear()

    async def _get_token(self) -> str | None:
        if not callable(self._token):
            return self._token
        try:
            token = self._token()
            return await token if inspect.isawaitable(token) else token
        except Exception as error:
            # Whatever the application's function raises, the next attempt asks it again.
            raise LinkEndedError(f"the token provider failed: {error!r}") from error

    async def _renew(self) -> None:
        try:
            token = await self._get_token()
        except LinkEndedError as error:
            logger.warning("%s", error.reason)
        else:
            self._session.token_received(token or "")
            self._kicked.set()
        finally:
            self._renewal = None
