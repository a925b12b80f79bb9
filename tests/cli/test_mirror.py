"""The SQLite side of `mirror`: rows, position and shape change together, or not at all."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from rowcast.client.stream import Progress, Resync, SnapshotChunk, Subscribed, Transaction
from rowcast.errors import ClientError
from rowcast.mirror import Mirror, StaleError

EPOCH = "5e1f0c6a9d3b2e47"
COLUMNS = (("id", "bigint"), ("name", "text"))


def at(number: int, epoch: str = EPOCH) -> str:
    return f"{epoch}-{number:016x}"


def subscribed(
    columns: tuple[tuple[str, str], ...] = COLUMNS, key: tuple[str, ...] = ("id",), table: str = "projects"
) -> Subscribed:
    return Subscribed("stream", table, "public", table, columns, key, at(0), 1)


def snapshot(rows: Sequence[dict[str, Any]], position: str = at(1)) -> SnapshotChunk:
    return SnapshotChunk("stream", 0, rows, [], last=True, position=position)


def transaction(number: int, *changes: dict[str, Any]) -> Transaction:
    return Transaction(at(number), number, "2026-11-21T09:30:00Z", changes)


def insert(**new: Any) -> dict[str, Any]:
    return {"op": "INSERT", "key": {"id": new.get("id")}, "new": new}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mirror.sqlite"


def loaded(file: Path, rows: Sequence[dict[str, Any]] = ()) -> Mirror:
    mirror = Mirror(file, "projects")
    mirror.take(subscribed())
    mirror.take(snapshot(rows))
    return mirror


def content(file: Path, query: str = "SELECT * FROM projects ORDER BY 1") -> list[Any]:
    with closing(sqlite3.connect(file)) as database:
        return database.execute(query).fetchall()


def position(file: Path) -> Any:
    return content(file, "SELECT position, epoch FROM _rowcast")[0]


@pytest.mark.parametrize(
    ("type_name", "sent", "kept"),
    [
        ("bigint", -(2**63), -(2**63)),
        ("boolean", True, 1),
        ("boolean", False, 0),
        ("double precision", 1, 1.0),
        ("double precision", 0.1, 0.1),
        ("double precision", "NaN", "NaN"),
        ("numeric", 5, 5),
        ("numeric(10,2)", 1.1, 1.1),
        ("numeric", Decimal("0.1"), 0.1),
        ("numeric", Decimal("12345678901234567890.125"), "12345678901234567890.125"),
        ("numeric", 10**30, "1" + "0" * 30),
        ("numeric", "Infinity", "Infinity"),
        ("text", "007", "007"),
        ("text", "", ""),
        ("character varying(3)", "1.0", "1.0"),
        ("uuid", "0b9c7a52-5b0e-4b9e-9a53-0b6e5a3b1c11", "0b9c7a52-5b0e-4b9e-9a53-0b6e5a3b1c11"),
        ("timestamp with time zone", "2026-11-21T09:30:00+00:00", "2026-11-21T09:30:00+00:00"),
        ("bytea", "\\x00ff", "\\x00ff"),
        ("jsonb", {"a": [1, Decimal("0.10000000000000000001")]}, '{"a":[1,0.10000000000000000001]}'),
        ("json", "text", '"text"'),
        ("jsonb", True, "true"),
        ("integer[]", [1, None, 2], "[1,null,2]"),
        ("my_composite", {"x": 1}, '{"x":1}'),
        ("my_domain_over_integer", 7, 7),
        ("my_enum", "1e3", "1e3"),
        ("text", None, None),
    ],
)
def test_values_are_kept_as_promised(file: Path, type_name: str, sent: Any, kept: Any) -> None:
    mirror = Mirror(file, "projects")
    mirror.take(subscribed((("id", "bigint"), ("v", type_name))))
    mirror.take(snapshot([{"id": 1, "v": sent}]))
    mirror.take(transaction(2, {"op": "INSERT", "key": {"id": 2}, "new": {"id": 2, "v": sent}}))
    rows = content(file, "SELECT v, typeof(v) FROM projects")
    assert rows == [(kept, {int: "integer", float: "real", str: "text"}.get(type(kept), "null"))] * 2
    mirror.close()


def test_names_are_kept_whatever_they_are(file: Path) -> None:
    columns = (
        ('a "b"', "bigint"),
        ("select", "text"),
        ("Ünïcode 😀", "text"),
        ("rowid", "text"),
        ("oid", "text"),
    )
    row = {name: "x" for name, _ in columns} | {'a "b"': 1}
    mirror = Mirror(file, 'Weird."Name"')
    mirror.take(subscribed(columns, (), table='Weird "Name"'))
    mirror.take(snapshot([row, row]))
    mirror.take(transaction(2, {"op": "DELETE", "old": row}))
    assert content(file, 'SELECT * FROM "Weird ""Name"""') == [(1, "x", "x", "x", "x")]
    mirror.close()


def test_each_operation_is_applied_and_a_row_may_change_its_key(file: Path) -> None:
    mirror = loaded(file, [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}, {"id": 3, "name": "c"}])
    mirror.take(
        transaction(
            2,
            insert(id=4, name="d"),
            {"op": "UPDATE", "key": {"id": 1}, "new": {"id": 1, "name": "A"}},
            {"op": "DELETE", "key": {"id": 2}},
            {"op": "UPDATE", "key": {"id": 5}, "new": {"id": 5, "name": "c"}, "old": {"id": 3}},
            {"op": "UPDATE", "key": {"id": 6}, "new": {"id": 6}, "old": {"id": 4}},
        )
    )
    assert content(file) == [(1, "A"), (5, "c"), (6, "d")]
    assert position(file) == (at(2), EPOCH)
    mirror.take(transaction(3, {"op": "TRUNCATE"}, insert(id=9, name="z")))
    assert content(file) == [(9, "z")]
    mirror.close()


def test_a_transaction_that_was_applied_is_not_applied_again(file: Path) -> None:
    with closing(loaded(file)) as mirror:
        for _ in range(2):
            mirror.take(transaction(2, insert(id=1, name="a")))
        mirror.take(transaction(3, {"op": "DELETE", "key": {"id": 1}}))
        mirror.take(transaction(2, insert(id=1, name="a")))
        assert content(file) == []


def test_a_transaction_that_fails_half_way_leaves_nothing(file: Path) -> None:
    with closing(loaded(file)) as mirror:
        with pytest.raises(StaleError):
            mirror.take(
                transaction(2, insert(id=1, name="a"), {"op": "UPDATE", "key": {"id": 7}, "new": {"id": 7}})
            )
        assert (content(file), position(file)) == ([], (at(1), EPOCH))


def test_the_next_start_goes_on_from_the_position_in_the_file(file: Path) -> None:
    first = loaded(file, [{"id": 1, "name": "a"}])
    first.take(transaction(2, insert(id=2, name="b")))
    # Not closed: as if it had been killed.
    with closing(Mirror(file, "projects")) as second:
        assert (second.position, second.follows) == (at(2), True)
        second.take(subscribed())
        second.take(transaction(3, insert(id=3, name="c")))
    assert content(file) == [(1, "a"), (2, "b"), (3, "c")]
    first.close()


def test_progress_is_written_but_not_while_rows_are_missing(file: Path) -> None:
    mirror = loaded(file)
    mirror.take(Progress(at(5)))
    mirror.write_progress()
    assert position(file) == (at(5), EPOCH)
    mirror.take(Progress(at(6)))
    mirror.take(Resync("stream", "slow_client", at(9)))
    mirror.take(Progress(at(9)))
    mirror.close()
    # Up to 6 all was told; what came after is lost, so the next start must ask from there.
    assert position(file) == (at(6), EPOCH)


def test_after_a_resync_the_rows_are_swapped_when_all_have_come(file: Path) -> None:
    mirror = loaded(file, [{"id": 1, "name": "old"}])
    mirror.take(Resync("stream", "log_expired", at(5)))
    mirror.take(
        SnapshotChunk(
            "stream", 0, [{"id": 2, "name": "x"}, {"id": 3, "name": "y"}], [], last=False, position=None
        )
    )
    assert (content(file), mirror.follows) == ([(1, "old")], False)
    mirror.take(SnapshotChunk("stream", 1, [{"id": 4, "name": "z"}], [{"id": 3}], last=True, position=at(8)))
    assert (content(file), position(file), mirror.follows) == ([(2, "x"), (4, "z")], (at(8), EPOCH), True)
    mirror.close()


def test_a_new_epoch_starts_over_and_never_compares_positions(file: Path) -> None:
    mirror = loaded(file, [{"id": 1, "name": "a"}])
    with pytest.raises(StaleError):
        mirror.take(Transaction(at(9, "0" * 16), 1, "", [insert(id=2, name="b")]))
    with pytest.raises(StaleError):
        mirror.take(Progress(at(9, "f" * 16)))
    mirror.start_over()
    mirror.take(subscribed())
    mirror.take(snapshot([{"id": 2, "name": "b"}], at(1, "0" * 16)))
    assert (content(file), position(file)) == ([(2, "b")], (at(1, "0" * 16), "0" * 16))
    mirror.close()


def test_other_columns_rebuild_the_table_and_equal_ones_keep_its_indexes(file: Path) -> None:
    mirror = loaded(file, [{"id": 1, "name": "a"}])
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE INDEX by_name ON projects (name)")
    mirror.take(Resync("stream", "slow_client", at(2)))
    mirror.take(subscribed())
    mirror.take(snapshot([{"id": 1, "name": "b"}], at(2)))
    assert content(file, "SELECT name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL") == [
        ("by_name",)
    ]
    wider = (*COLUMNS, ("size", "integer"))
    mirror.take(subscribed(wider))
    with pytest.raises(StaleError):
        mirror.take(transaction(3, insert(id=2, name="c", size=5)))
    mirror.take(Resync("stream", "schema_changed", at(3)))
    mirror.take(snapshot([{"id": 1, "name": "b", "size": None}], at(3)))
    mirror.take(transaction(4, insert(id=2, name="c", size=5)))
    assert content(file) == [(1, "b", None), (2, "c", 5)]
    mirror.close()
    with closing(Mirror(file, "projects")) as again:
        again.take(subscribed())
        with pytest.raises(StaleError):
            again.take(Progress(at(9)))


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        ("CREATE TABLE Projects (x)", "has something else named projects"),
        ("CREATE VIEW projects AS SELECT 1", "has something else named projects"),
    ],
)
def test_a_table_of_somebody_else_is_not_touched(file: Path, prepare: str, said: str) -> None:
    with closing(sqlite3.connect(file)) as database:
        database.execute(prepare)
    with closing(Mirror(file, "projects")) as mirror, pytest.raises(ClientError, match=said):
        mirror.take(subscribed())


def test_a_file_belongs_to_one_shape_for_each_table_and_may_hold_several_tables(file: Path) -> None:
    loaded(file).close()
    with (
        closing(Mirror(file, "projects", filter="id=eq.1")) as filtered,
        pytest.raises(ClientError, match="mirrors projects as projects: name another file"),
    ):
        filtered.take(subscribed())
    with closing(Mirror(file, "jobs")) as jobs:
        jobs.take(subscribed(table="jobs"))
        jobs.take(snapshot([{"id": 1, "name": "j"}]))
    assert content(file, "SELECT table_name FROM _rowcast ORDER BY 1") == [("jobs",), ("projects",)]


def test_two_mirrors_of_one_table_notice_each_other(file: Path) -> None:
    with closing(loaded(file)) as first, closing(Mirror(file, "projects")) as second:
        second.take(subscribed())
        second.take(transaction(2, insert(id=1, name="a")))
        with pytest.raises(ClientError, match="another process has written"):
            first.take(transaction(2, insert(id=1, name="a")))
    assert content(file) == [(1, "a")]


def test_columns_that_sqlite_cannot_tell_apart_are_refused(file: Path) -> None:
    with (
        closing(Mirror(file, "projects")) as mirror,
        pytest.raises(ClientError, match="differ in capitals only, which SQLite cannot tell apart: id, ID"),
    ):
        mirror.take(subscribed((("id", "bigint"), ("ID", "text"))))


def test_a_file_that_is_no_database_is_named(file: Path) -> None:
    file.write_bytes(b"not a database, and long enough to be looked at" * 10)
    with pytest.raises(
        ClientError, match=r"mirror\.sqlite cannot be kept as a mirror: file is not a database"
    ):
        Mirror(file, "projects")


# Rows of a table without a key: equal ones are common, and each DELETE takes one.
_names = st.sampled_from(["a", "b", None])
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("insert"), st.integers(1, 4), _names),
        st.tuples(st.just("update"), st.integers(0, 9), _names),
        st.tuples(st.just("move"), st.integers(0, 9), st.integers(1, 9)),
        st.tuples(st.just("delete"), st.integers(0, 9), st.none()),
        st.tuples(st.just("commit"), st.none(), st.none()),
        st.tuples(st.just("restart"), st.none(), st.none()),
        st.tuples(st.just("resync"), st.none(), st.none()),
    ),
    max_size=40,
)


@pytest.mark.parametrize("key", [("id",), ()])
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=_steps)
def test_whatever_happens_the_file_is_the_model_at_its_position(
    tmp_path_factory: pytest.TempPathFactory, key: tuple[str, ...], steps: list[tuple[str, Any, Any]]
) -> None:
    file = tmp_path_factory.mktemp("mirror") / "mirror.sqlite"
    keyed = bool(key)
    mirror = Mirror(file, "projects")
    mirror.take(subscribed(key=key))
    mirror.take(snapshot([]))
    rows: list[dict[str, Any]] = []
    changes: list[dict[str, Any]] = []
    number = 1

    def tell(change: dict[str, Any]) -> None:
        identity = {"key": {"id": (change.get("new") or change["old"])["id"]}} if keyed else {}
        known = change.pop("old", None)
        if known is not None and (not keyed or known["id"] != identity["key"]["id"] or "new" not in change):
            change["old"] = {"id": known["id"]} if keyed else dict(known)
        changes.append({**change, **identity})

    for step, first, second in [*steps, ("commit", None, None)]:
        if step == "insert" and not (keyed and any(row["id"] == first for row in rows)):
            rows.append({"id": first, "name": second})
            tell({"op": "INSERT", "new": dict(rows[-1])})
        elif step in {"update", "move", "delete"} and rows:
            row = rows[first % len(rows)]
            old = dict(row)
            if step == "delete":
                rows.remove(row)
                tell({"op": "DELETE", "old": old})
            elif step == "update":
                row["name"] = second
                tell({"op": "UPDATE", "old": old, "new": dict(row)})
            elif not (keyed and any(other["id"] == second for other in rows)):
                row["id"] = second
                tell({"op": "UPDATE", "old": old, "new": dict(row)})
        elif step == "commit":
            number += 1
            mirror.take(transaction(number, *changes))
            changes.clear()
            kept = sorted(content(file), key=repr)
            assert kept == sorted([(row["id"], row["name"]) for row in rows], key=repr)
            assert position(file) == (at(number), EPOCH)
        elif step == "restart":
            mirror = Mirror(file, "projects")
            mirror.take(subscribed(key=key))
        elif step == "resync" and not changes:
            number += 1
            mirror.take(Resync("stream", "slow_client", at(number)))
            mirror.take(snapshot(rows, at(number)))
    mirror.close()
