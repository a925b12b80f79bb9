"""Rows of the outbox as events, without a database."""

from __future__ import annotations

import struct

from hypothesis import given, strategies as st
from tests.streams import EPOCH, table

from rowcast.capture.outbox_rows import BATCH_SHIFT, Batch, Member, parse_record
from rowcast.model import Event, Gap, Transaction, make_position

PROJECTS = table("projects", "id bigint, name text", oid=1000)
JOBS = table("jobs", "id bigint, state text", oid=2000)
MEMBERS = {
    1000: Member(1000, PROJECTS, ("id", "name")),
    1001: Member(1001, PROJECTS, ("name", "extra", "id")),  # a partition with columns in another order
    2000: Member(2000, JOBS, ("id", "state")),
}
HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"


def row(
    xid: int, statement: int, oid: int, operation: bytes, content: bytes | None = None, at: int = 0
) -> bytes:
    head = struct.pack("!hiqiqiqiIic", 6, 8, xid, 8, at, 8, statement, 4, oid, 1, operation)
    return head + (struct.pack("!i", -1) if content is None else struct.pack("!i", len(content)) + content)


def read(
    *rows: bytes, told: int = 0, stale: frozenset[int] = frozenset(), max_bytes: int = 1 << 20
) -> tuple[Batch, list[Event]]:
    batch = Batch(EPOCH, 7, told, MEMBERS, stale, max_bytes)
    for number, each in enumerate(rows):
        batch.feed(HEADER + each if number == 0 else each)
    batch.feed(TRAILER)
    assert batch.row_count == len(rows)
    return batch, batch.finish()


def place(number: int) -> str:
    return make_position(EPOCH, 7 << BATCH_SHIFT | number)


def told_changes(events: list[Event]) -> list[tuple[object, ...]]:
    return [
        (change.operation, change.table.name, change.new, change.old)
        for event in events
        if isinstance(event, Transaction)
        for change in event.changes
    ]


def test_transactions_take_places_in_their_batch() -> None:
    batch, events = read(
        row(11, 1, 1000, b"I", b"(1,a)", at=5),
        row(11, 2, 2000, b"I", b'(2,"b c")', at=9),
        row(10, 1, 0, b"C", b"m-1"),
        row(12, 1, 2000, b"D", b"(2,)"),
        row(13, 1, 0, b"W"),
        row(14, 1, 999, b"I", b"(of nobody)"),
        row(15, 1, 1000, b"T"),
    )
    transactions = [event for event in events if isinstance(event, Transaction)]
    assert [(one.position, one.xid, one.confirms) for one in transactions] == [
        (place(1), 11, ()),
        (place(2), 10, ("m-1",)),
        (place(3), 12, ()),
        (place(6), 15, ()),
    ]
    assert transactions[0].timestamp_us == 946_684_800_000_009
    assert told_changes(events) == [
        ("INSERT", "projects", (b"1", b"a"), None),
        ("INSERT", "jobs", (b"2", b"b c"), None),
        ("DELETE", "jobs", None, (b"2", None)),
        ("TRUNCATE", "projects", None, None),
    ]
    assert batch.end == make_position(EPOCH, 8 << BATCH_SHIFT)
    assert (batch.lost, batch.missed, batch.overflowed) == (set(), set(), False)


def test_what_was_told_before_is_passed_over_but_what_is_missing_in_it_is_not_forgotten() -> None:
    rows = [row(xid, 1, 1000, b"I", b"(%d,)" % xid) for xid in (11, 12, 13)]
    batch, events = read(*rows, row(13, 2, 2000, b"G"), told=2)
    assert [event.position for event in events] == [place(3)]
    batch, events = read(row(10, 1, 2000, b"G"), *rows, told=4)
    assert (events, batch.missed) == ([], {2000})
    batch, events = read(*rows, told=3, stale=frozenset({1000}))
    assert (events, batch.lost) == ([], {1000})


def test_old_and_new_rows_of_an_update_are_paired_by_their_place() -> None:
    update = [
        row(11, 1, 1000, b"O", b"(1,a)"),
        row(11, 1, 1000, b"O", b"(2,b)"),
        row(11, 1, 1000, b"N", b"(3,a)"),
        row(11, 1, 1000, b"N", b"(4,b)"),
    ]
    _, events = read(*update, row(11, 2, 1001, b"O", b"(x,y,5)"), row(11, 2, 1001, b"N", b"(z,y,5)"))
    assert told_changes(events) == [
        ("UPDATE", "projects", (b"3", b"a"), (b"1", b"a")),
        ("UPDATE", "projects", (b"4", b"b"), (b"2", b"b")),
        ("UPDATE", "projects", (b"5", b"z"), (b"5", b"x")),
    ]
    _, events = read(*update[:-1], row(11, 1, 1000, b"I", b"(9,)"))
    assert told_changes(events) == [
        ("DELETE", "projects", None, (b"1", b"a")),
        ("DELETE", "projects", None, (b"2", b"b")),
        ("INSERT", "projects", (b"3", b"a"), None),
        ("INSERT", "projects", (b"9", None), None),
    ]
    # Another UPDATE of the same statement and table, as triggers were disabled: the first is complete.
    _, events = read(update[0], update[2], update[1], update[3])
    assert [change[0] for change in told_changes(events)] == ["UPDATE", "UPDATE"]


def test_rows_that_may_have_other_columns_are_left_out_and_counted() -> None:
    rows = [
        row(11, 1, 1000, b"I", b"(1,a,too many)"),
        row(11, 2, 2000, b"I", b"(1,a)"),
        row(11, 3, 1000, b"O", b"(1,a,x)"),
        row(11, 3, 1000, b"N", b"(1,a,y)"),
        row(11, 4, 2000, b"I", b"(2,a)"),
        row(11, 5, 1000, b"D", b"(1)"),
    ]
    batch, [gap, transaction] = read(*rows, row(12, 6, 1000, b"D", b"(1)"))
    assert isinstance(transaction, Transaction)
    assert [change.index for change in transaction.changes] == [1, 3]
    assert gap == Gap(transaction.position, "schema_changed", frozenset({1000}), 11)
    assert batch.lost == {1000}
    batch, [gap] = read(row(11, 1, 1001, b"I", b"(a,b,1)"), stale=frozenset({1001}))
    assert isinstance(gap, Gap)
    assert gap.tables == frozenset(batch.lost) == frozenset({1000})


def test_a_transaction_over_the_bound_is_a_gap_that_names_its_tables() -> None:
    rows = [
        row(11, 1, 1000, b"I", b"(1,%s)" % (b"x" * 3000)),
        row(11, 1, 0, b"C", b"m"),
        row(11, 2, 2000, b"O", b"(1,a)"),
        row(11, 2, 2000, b"N", b"(1,b)"),
        row(11, 3, 2000, b"T"),
        row(11, 4, 999, b"D", b"(1)"),
        row(11, 5, 999, b"T"),
    ]
    _, events = read(*rows, row(12, 1, 1000, b"I", b"(1,)"), max_bytes=2000)
    assert events[0] == Gap(
        make_position(EPOCH, 7 << BATCH_SHIFT | 1), "transaction_too_large", frozenset({1000, 2000}), 11
    )
    assert told_changes(events) == [("INSERT", "projects", (b"1", None), None)]
    # A row that was not written down, because it was too large for anybody.
    _, [gap] = read(row(11, 1, 1000, b"I", None))
    assert isinstance(gap, Gap)
    # Many confirmations are large too.
    _, [gap] = read(*[row(11, 1, 0, b"C", b"m" * 200) for _ in range(20)], max_bytes=2000)
    assert isinstance(gap, Gap)


def test_a_partitions_truncate_is_a_gap_unless_the_whole_table_was_meant() -> None:
    batch, events = read(row(11, 1, 1000, b"T"), row(11, 1, 1001, b"T"))
    assert told_changes(events) == [("TRUNCATE", "projects", None, None)]
    assert batch.missed == set()
    batch, events = read(row(11, 1, 1001, b"T"))
    assert (events, batch.missed) == ([], {1000})
    batch, events = read(row(11, 1, 999, b"G"), row(11, 1, 999, b"T"))
    assert (events, batch.missed) == ([], set())


def test_more_transactions_than_places_are_left_out_and_it_is_said() -> None:
    batch = Batch(EPOCH, 7, 0, MEMBERS, frozenset(), 1 << 20)
    batch._place = (1 << BATCH_SHIFT) - 2
    for xid in (11, 12, 13):
        batch.feed(row(xid, 1, 1000, b"I", b"(1,)"))
    assert [event.position for event in batch.finish()] == [place((1 << BATCH_SHIFT) - 1)]
    assert batch.overflowed


def test_a_table_without_columns_has_rows() -> None:
    empty = table("empty", "id bigint", oid=3)
    member = Member(3, type(empty)(3, "public", "empty", (), (), "nothing"), ())
    batch = Batch(EPOCH, 7, 0, {3: member}, frozenset(), 1 << 20)
    batch.feed(row(11, 1, 3, b"I", b"()"))
    [transaction] = batch.finish()
    assert isinstance(transaction, Transaction)
    assert transaction.changes[0].new == ()


_value = st.none() | st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=8
)


@given(st.lists(_value, min_size=1, max_size=5))
def test_a_records_text_is_split_as_postgresql_wrote_it(values: list[str | None]) -> None:
    """The rules of record_out(), which the tests over PostgreSQL hold against PostgreSQL's own."""

    def written(value: str | None) -> str:
        if value is None:
            return ""
        if value == "" or any(each in '"\\(),' or each.isspace() for each in value):
            return '"' + value.replace("\\", "\\\\").replace('"', '""') + '"'
        return value

    text = f"({','.join(map(written, values))})".encode()
    assert parse_record(text) == [None if value is None else value.encode() for value in values]
