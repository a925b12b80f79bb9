"""What `tail` prints: the plain form of the protocol, or a line for people; snapshots in one piece."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from hypothesis import given, strategies as st
from rich.text import Text

from rowcast.cli.lines import JSONLines, Lines, PrettyLines, Rows
from rowcast.client.state import ConnectionState
from rowcast.client.stream import (
    Progress,
    Resync,
    SnapshotChunk,
    StateChanged,
    StreamEvent,
    Subscribed,
    Transaction,
)

POSITION = "5e1f0c6a9d3b2e47-00000000016b3890"
SUBSCRIBED = Subscribed(
    "stream", "projects", "public", "projects", (("id", "bigint"), ("name", "text")), ("id",), POSITION, 3
)


def transaction(*changes: dict[str, Any]) -> Transaction:
    return Transaction(POSITION, 771, "2026-11-21T09:30:00.123456Z", changes)


def chunk(
    number: int, rows: list[Any], *, deleted: list[Any] | None = None, last: bool = False
) -> SnapshotChunk:
    return SnapshotChunk("stream", number, rows, deleted or [], last, POSITION if last else None)


def as_json(*events: StreamEvent) -> list[Any]:
    lines = JSONLines("projects")
    return [json.loads(line) for event in events for line in lines.of(event) if isinstance(line, bytes)]


def as_text(*events: StreamEvent) -> list[str]:
    lines: Lines = PrettyLines()
    return [line.plain for event in events for line in lines.of(event) if isinstance(line, Text)]


def test_a_change_is_the_plain_form_field_by_field() -> None:
    change = {
        "shape": 3,
        "op": "UPDATE",
        "id": f"{POSITION}-00000000",
        "key": {"id": 7},
        "new": {"id": 7, "name": "B"},
    }
    printed = as_json(
        SUBSCRIBED, transaction({**change, "old": {"id": 7, "name": "A"}}, {**change, "op": "TRUNCATE"})
    )
    assert printed[1] == {
        "op": "UPDATE",
        "table": "projects",
        "schema": "public",
        "channel": "projects",
        "key": {"id": 7},
        "new": {"id": 7, "name": "B"},
        "old": {"id": 7, "name": "A"},
        "id": f"{POSITION}-00000000",
        "position": POSITION,
        "txid": 771,
        "timestamp": "2026-11-21T09:30:00.123456Z",
    }
    assert "old" not in printed[2]


def test_what_is_no_change_has_a_type() -> None:
    reconnecting = StateChanged(ConnectionState("reconnecting", "refused"))
    printed = as_json(SUBSCRIBED, Progress(POSITION), Resync("stream", "slow_client", POSITION), reconnecting)
    assert printed == [
        {"type": "subscribed", "channel": "projects", "position": POSITION},
        {"type": "resync", "channel": "projects", "reason": "slow_client", "position": POSITION},
        {"type": "status", "channel": "projects", "state": "reconnecting", "reason": "refused"},
    ]


def test_numbers_are_printed_with_all_their_digits() -> None:
    lines = JSONLines("projects")
    (line,) = lines.of(
        transaction({"op": "INSERT", "new": {"n": Decimal("12345678901234567890.125"), "big": 10**30}})
    )
    assert b'"n":12345678901234567890.125,"big":1' + b"0" * 30 in bytes(line)  # type: ignore[arg-type]


def test_a_snapshot_is_printed_when_it_is_complete_and_begins_anew_with_chunk_0() -> None:
    lines = JSONLines("projects")
    started = [
        list(lines.of(event))
        for event in (
            SUBSCRIBED,
            chunk(0, [{"id": 9, "name": "stale"}]),
            chunk(0, [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]),
        )
    ]
    assert [len(printed) for printed in started] == [1, 0, 0]
    last = chunk(1, [{"id": 1, "name": "c"}], deleted=[{"id": 2}], last=True)
    row, end = [json.loads(bytes(line)) for line in lines.of(last)]  # type: ignore[arg-type]
    assert (row["op"], row["key"], row["new"], row["position"]) == (
        "SNAPSHOT",
        {"id": 1},
        {"id": 1, "name": "c"},
        POSITION,
    )
    assert end == {"type": "snapshot", "channel": "projects", "rows": 1, "last": True, "position": POSITION}


@given(st.lists(st.tuples(st.sampled_from("ab"), st.booleans())))
def test_rows_without_a_key_are_kept_as_often_as_they_are_there(steps: list[tuple[str, bool]]) -> None:
    rows, model = Rows(), list[Any]()
    rows.add(chunk(0, []))
    for value, added in steps:
        if added:
            rows.add(chunk(1, [{"v": value}]))
            model.append({"v": value})
        elif {"v": value} in model:
            rows.add(chunk(1, [], deleted=[{"v": value}]))
            model.remove({"v": value})
    assert sorted(rows.take(), key=str) == sorted(model, key=str)
    assert rows.take() == []


def test_a_line_for_people_has_the_key_and_the_columns_that_changed() -> None:
    update = {
        "op": "UPDATE",
        "key": {"id": 7},
        "old": {"id": 7, "name": "A", "size": 1},
        "new": {"id": 7, "name": "B" * 100, "size": 1},
    }
    partial = {"op": "UPDATE", "key": {"id": 7}, "new": {"id": 7, "size": 2}}
    changes: list[dict[str, Any]] = [update, partial, {"op": "DELETE", "key": {"id": 7}}, {"op": "TRUNCATE"}]
    printed = [line.split(maxsplit=1)[1] for line in as_text(SUBSCRIBED, transaction(*changes))[1:]]
    assert printed == [
        f'UPDATE   projects id=7  name: "A" → "{"B" * 58}…',
        "UPDATE   projects id=7  size: 2",
        "DELETE   projects id=7",
        "TRUNCATE projects",
    ]


def test_people_are_told_of_gaps_snapshots_and_each_new_state_once() -> None:
    retry = StateChanged(ConnectionState("reconnecting", "refused"))
    events: list[StreamEvent] = [
        SUBSCRIBED,
        chunk(0, [{"id": 1, "name": "a"}], last=True),
        Resync("stream", "log_expired", POSITION),
        retry,
        retry,
        StateChanged(ConnectionState("connected")),
    ]
    assert [line.strip() for line in as_text(*events)] == [
        "watching projects",
        'SNAPSHOT projects id=1  name: "a"',
        f"1 rows at {POSITION}",
        "resync: changes are missing from here (log_expired)",
        "reconnecting: refused",
        "connected",
    ]
