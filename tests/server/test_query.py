"""What a URL's query may say, and what it is told where it says something else."""

from __future__ import annotations

import pytest

from rowcast.errors import ProtocolError
from rowcast.server.query import SELECTION, Query

KNOWN = SELECTION | {"channel", "limit", "wait", "snapshot"}


def query(text: str) -> Query:
    return Query(text.encode(), KNOWN)


def test_an_unknown_parameter_is_named_with_the_known_ones() -> None:
    with pytest.raises(
        ProtocolError, match="unknown parameter colour; known: channel, columns, filter, limit, params, "
    ):
        query("limit=1&colour=red")


@pytest.mark.parametrize(("text", "number"), [("", None), ("limit=1", 1), ("limit=1000000", 1_000_000)])
def test_a_limit_is_a_number_of_rows_or_none(text: str, number: int | None) -> None:
    assert query(text).limit() == number


@pytest.mark.parametrize(
    "value", ["0", "-1", "1.5", "many", "", "1_000", "1000001", "9" * 40, "%C2%B2", "+5"]
)
def test_a_limit_that_is_none_says_what_to_write(value: str) -> None:
    with pytest.raises(
        ProtocolError, match=r"limit is a whole number from 1 to 1000000, not .*: write limit=1000"
    ):
        query(f"limit={value}").limit()


@pytest.mark.parametrize(
    ("text", "seconds"), [("", 0.0), ("wait=", 0.0), ("wait=0.5", 0.5), ("wait=600", 600.0)]
)
def test_a_wait_is_a_number_of_seconds(text: str, seconds: float) -> None:
    assert query(text).wait_seconds() == seconds


@pytest.mark.parametrize("value", ["-1", "soon", "nan", "inf", "20s"])
def test_a_wait_that_is_none_says_what_to_write(value: str) -> None:
    with pytest.raises(ProtocolError, match="write wait=20"):
        query(f"wait={value}").wait_seconds()


@pytest.mark.parametrize(
    ("text", "wanted"), [("", False), ("snapshot=TRUE", True), ("snapshot=1", True), ("snapshot=0", False)]
)
def test_a_switch_is_true_or_false(text: str, wanted: bool) -> None:  # noqa: FBT001
    assert query(text).switch("snapshot") is wanted


def test_a_switch_that_is_neither_is_refused() -> None:
    with pytest.raises(ProtocolError, match="snapshot is true or false, not yes"):
        query("snapshot=yes").switch("snapshot")


def test_what_is_written_twice_is_refused_and_what_may_be_repeated_counts_once() -> None:
    with pytest.raises(ProtocolError, match="limit is there 2 times: write it once"):
        query("limit=1&limit=2").limit()
    assert query("channel=a&channel=b&channel=a").all("channel") == ["a", "b"]
    assert query("").all("channel") == []


def test_a_selection_is_what_a_subscribe_frame_would_carry() -> None:
    assert query("").selection() == {}
    assert query("filter=&where=a=$1&params=[5,%22x%22,null]&columns=a,b").selection() == {
        "filter": "",
        "where": "a=$1",
        "params": [5, "x", None],
        "columns": ["a", "b"],
    }


@pytest.mark.parametrize("value", ["[", "5", '{"a":1}', "[[1]]", ""])
def test_params_that_are_no_list_of_values_say_what_to_write(value: str) -> None:
    with pytest.raises(ProtocolError, match="params is a JSON list of values, such as"):
        query(f"params={value}").selection()
