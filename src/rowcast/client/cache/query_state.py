"""What a query knows, and the one function that changes it. No I/O, no clock: times come in with the actions.

`status` says whether there is data, `fetch_status` whether the function is running; the two are independent.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeAlias, TypeVar

import msgspec

T = TypeVar("T")

QueryStatus: TypeAlias = Literal["pending", "error", "success"]
FetchStatus: TypeAlias = Literal["idle", "fetching", "paused"]
# Which page of an infinite query a fetch is for; None for all it has.
FetchDirection: TypeAlias = Literal["forward", "backward"]


class QueryState(msgspec.Struct, Generic[T], frozen=True, kw_only=True, eq=False):
    """One query's state at one moment.

    Attributes:
        data: The last answer, or what was written in its place; None if there is none yet.
        data_update_count: How often data was written since the query was made.
        data_updated_at: When the data was known to be right, seconds since 1970 UTC; 0.0 for never.
        error: Why the last fetch failed; None if it did not.
        error_updated_at: When it failed, seconds since 1970 UTC.
        fetch_failure_count: Failed attempts of the present or last fetch.
        fetch_failure_reason: The error of the last attempt.
        fetch_direction: Which page is being fetched, for infinite queries.
        is_invalidated: Somebody knows that the data is out of date.
    """

    data: T | None = None
    data_update_count: int = 0
    data_updated_at: float = 0.0
    error: Exception | None = None
    error_update_count: int = 0
    error_updated_at: float = 0.0
    fetch_failure_count: int = 0
    fetch_failure_reason: Exception | None = None
    fetch_direction: FetchDirection | None = None
    is_invalidated: bool = False
    status: QueryStatus = "pending"
    fetch_status: FetchStatus = "idle"


class Fetch(msgspec.Struct, frozen=True):
    """A fetch begins, or waits to begin."""

    paused: bool
    direction: FetchDirection | None


class Success(msgspec.Struct, frozen=True):
    """Data came: from a fetch, or written by hand (`manual`), which leaves a running fetch running.

    Attributes:
        outdated: It is known already that something has changed since the answer was made.
    """

    data: Any
    updated_at: float
    manual: bool = False
    outdated: bool = False


class Failure(msgspec.Struct, frozen=True):
    """A fetch failed for good."""

    error: Exception
    at: float


class AttemptFailed(msgspec.Struct, frozen=True):
    """An attempt failed; another one follows."""

    failure_count: int
    error: Exception


class Pause(msgspec.Struct, frozen=True):
    """The fetch waits: for the network, or for somebody to look."""


class Continue(msgspec.Struct, frozen=True):
    """The fetch goes on."""


class Invalidate(msgspec.Struct, frozen=True):
    """The data is out of date."""


class Patch(msgspec.Struct, frozen=True):
    """A part of the data was brought up to date; nothing is said about the rest of it."""

    data: Any


class SetState(msgspec.Struct, frozen=True):
    """Put a state in place of the present one: a cancelled fetch, a reset, persisted data."""

    state: QueryState[Any]


QueryAction: TypeAlias = (
    Fetch | Success | Failure | AttemptFailed | Pause | Continue | Invalidate | Patch | SetState
)


def reduce(state: QueryState[T], action: QueryAction) -> QueryState[T]:
    """The state after `action`."""
    replace = msgspec.structs.replace
    match action:
        case Fetch():
            begun = replace(
                state,
                fetch_failure_count=0,
                fetch_failure_reason=None,
                fetch_direction=action.direction,
                fetch_status="paused" if action.paused else "fetching",
            )
            return begun if state.data is not None else replace(begun, status="pending", error=None)
        case Success():
            updated = replace(
                state,
                data=action.data,
                data_update_count=state.data_update_count + 1,
                data_updated_at=action.updated_at,
                error=None,
                is_invalidated=action.outdated,
                status="success",
            )
            if action.manual:
                return updated
            return replace(updated, fetch_status="idle", fetch_failure_count=0, fetch_failure_reason=None)
        case Failure():
            return replace(
                state,
                error=action.error,
                error_update_count=state.error_update_count + 1,
                error_updated_at=action.at,
                fetch_failure_count=state.fetch_failure_count + 1,
                fetch_failure_reason=action.error,
                fetch_status="idle",
                status="error",
                is_invalidated=True,
            )
        case AttemptFailed():
            return replace(state, fetch_failure_count=action.failure_count, fetch_failure_reason=action.error)
        case Pause():
            return replace(state, fetch_status="paused")
        case Continue():
            return replace(state, fetch_status="fetching")
        case Invalidate():
            return replace(state, is_invalidated=True)
        case Patch():
            return replace(state, data=action.data, data_update_count=state.data_update_count + 1)
        case SetState():
            return action.state


def success_state(state: QueryState[T], data: T, updated_at: float) -> QueryState[T]:
    """`state` with data that was not fetched: initial or persisted."""
    return msgspec.structs.replace(
        state, data=data, data_updated_at=updated_at, error=None, is_invalidated=False, status="success"
    )
