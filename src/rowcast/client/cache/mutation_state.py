"""What a mutation knows, and the one function that changes it. No I/O, no clock: times come in with the actions."""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeAlias, TypeVar

import msgspec

V = TypeVar("V")
R = TypeVar("R")

MutationStatus: TypeAlias = Literal["idle", "pending", "success", "error"]


class MutationState(msgspec.Struct, Generic[V, R], frozen=True, kw_only=True, eq=False):
    """One mutation's state at one moment.

    Attributes:
        data: What its function returned.
        variables: What it was called with.
        context: What `on_mutate` returned.
        is_paused: It waits: for the network, for somebody to look, or for the mutation before it in its scope.
        submitted_at: When it was called, seconds since 1970 UTC; 0.0 for never.
    """

    data: R | None = None
    error: Exception | None = None
    variables: V | None = None
    context: Any = None
    failure_count: int = 0
    failure_reason: Exception | None = None
    is_paused: bool = False
    status: MutationStatus = "idle"
    submitted_at: float = 0.0

    @property
    def is_idle(self) -> bool:
        return self.status == "idle"

    @property
    def is_pending(self) -> bool:
        return self.status == "pending"

    @property
    def is_success(self) -> bool:
        return self.status == "success"

    @property
    def is_error(self) -> bool:
        return self.status == "error"


class Submit(msgspec.Struct, frozen=True):
    """It was called."""

    variables: Any
    paused: bool
    at: float


class SetContext(msgspec.Struct, frozen=True):
    """`on_mutate` returned."""

    context: Any


class AttemptFailed(msgspec.Struct, frozen=True):
    """An attempt failed; another one follows."""

    failure_count: int
    error: Exception


class Pause(msgspec.Struct, frozen=True):
    """It waits."""


class Continue(msgspec.Struct, frozen=True):
    """It goes on."""


class Success(msgspec.Struct, frozen=True):
    """Its function and all callbacks have returned."""

    data: Any


class Failure(msgspec.Struct, frozen=True):
    """It failed for good, and its callbacks have returned."""

    error: Exception


MutationAction: TypeAlias = Submit | SetContext | AttemptFailed | Pause | Continue | Success | Failure


def reduce(state: MutationState[V, R], action: MutationAction) -> MutationState[V, R]:
    """The state after `action`."""
    replace = msgspec.structs.replace
    match action:
        case Submit():
            return MutationState(
                status="pending", variables=action.variables, is_paused=action.paused, submitted_at=action.at
            )
        case SetContext():
            return replace(state, context=action.context)
        case AttemptFailed():
            return replace(state, failure_count=action.failure_count, failure_reason=action.error)
        case Pause():
            return replace(state, is_paused=True)
        case Continue():
            return replace(state, is_paused=False)
        case Success():
            return replace(
                state,
                data=action.data,
                error=None,
                failure_count=0,
                failure_reason=None,
                is_paused=False,
                status="success",
            )
        case Failure():
            return replace(
                state,
                data=None,
                error=action.error,
                failure_count=state.failure_count + 1,
                failure_reason=action.error,
                is_paused=False,
                status="error",
            )
