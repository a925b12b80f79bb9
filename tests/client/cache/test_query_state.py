"""Specification 1.1: the state of a query and what each action does to it."""

from __future__ import annotations

from typing import Any

import pytest

from rowcast.client.cache import QueryState
from rowcast.client.cache.query_state import (
    AttemptFailed,
    Continue,
    Failure,
    Fetch,
    Invalidate,
    Patch,
    Pause,
    QueryAction,
    SetState,
    Success,
    reduce,
)

EMPTY: QueryState[str] = QueryState()
HELD: QueryState[str] = QueryState(data="old", data_updated_at=5.0, data_update_count=1, status="success")
ERROR = ValueError("no")


def changed(before: QueryState[Any], action: QueryAction) -> dict[str, Any]:
    """The fields that an action changes."""
    after = reduce(before, action)
    return {
        name: getattr(after, name)
        for name in before.__struct_fields__
        if getattr(after, name) is not getattr(before, name) and getattr(after, name) != getattr(before, name)
    }


def test_a_first_fetch_is_pending_and_fetching() -> None:
    assert changed(EMPTY, Fetch(paused=False, direction=None)) == {"fetch_status": "fetching"}


def test_a_fetch_that_may_not_start_is_paused() -> None:
    assert changed(EMPTY, Fetch(paused=True, direction=None)) == {"fetch_status": "paused"}


def test_a_refetch_keeps_status_and_error() -> None:
    failed: QueryState[str] = QueryState(data="old", error=ERROR, status="error", fetch_failure_count=4)
    assert changed(failed, Fetch(paused=False, direction=None)) == {
        "fetch_status": "fetching",
        "fetch_failure_count": 0,
    }


def test_fetching_again_after_a_first_error_is_pending_again() -> None:
    failed: QueryState[str] = QueryState(error=ERROR, status="error", error_update_count=1)
    after = reduce(failed, Fetch(paused=False, direction=None))
    assert (after.status, after.error, after.error_update_count) == ("pending", None, 1)


def test_success_ends_the_fetch_and_clears_what_was_wrong() -> None:
    before: QueryState[str] = QueryState(
        error=ERROR, status="error", is_invalidated=True, fetch_status="fetching", fetch_failure_count=2
    )
    assert changed(before, Success("new", 9.0)) == {
        "data": "new",
        "data_update_count": 1,
        "data_updated_at": 9.0,
        "error": None,
        "is_invalidated": False,
        "status": "success",
        "fetch_status": "idle",
        "fetch_failure_count": 0,
    }


def test_data_written_by_hand_leaves_the_fetch_running() -> None:
    before: QueryState[str] = QueryState(fetch_status="fetching", fetch_failure_count=2)
    after = reduce(before, Success("new", 9.0, manual=True))
    assert (after.fetch_status, after.fetch_failure_count, after.status) == ("fetching", 2, "success")


def test_an_answer_known_to_be_overtaken_stays_invalidated() -> None:
    assert reduce(HELD, Success("new", 9.0, outdated=True)).is_invalidated


def test_failure_keeps_the_data_and_marks_it_as_invalidated() -> None:
    before: QueryState[str] = QueryState(data="old", status="success", fetch_status="fetching")
    assert changed(before, Failure(ERROR, 7.0)) == {
        "error": ERROR,
        "error_update_count": 1,
        "error_updated_at": 7.0,
        "fetch_failure_count": 1,
        "fetch_failure_reason": ERROR,
        "status": "error",
        "fetch_status": "idle",
        "is_invalidated": True,
    }


def test_a_failed_attempt_is_counted_and_changes_no_status() -> None:
    assert changed(EMPTY, AttemptFailed(2, ERROR)) == {
        "fetch_failure_count": 2,
        "fetch_failure_reason": ERROR,
    }


@pytest.mark.parametrize(("action", "status"), [(Pause(), "paused"), (Continue(), "fetching")])
def test_pause_and_continue_change_only_the_fetch_status(action: QueryAction, status: str) -> None:
    assert changed(EMPTY, action) == {"fetch_status": status}


def test_invalidating_says_only_that() -> None:
    assert changed(HELD, Invalidate()) == {"is_invalidated": True}


def test_a_patch_makes_nothing_fresh() -> None:
    stale: QueryState[str] = QueryState(
        data="old", data_updated_at=5.0, error=ERROR, status="error", is_invalidated=True
    )
    assert changed(stale, Patch("patched")) == {"data": "patched", "data_update_count": 1}


def test_a_state_can_be_put_in_place() -> None:
    assert reduce(HELD, SetState(EMPTY)) is EMPTY
