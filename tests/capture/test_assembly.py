"""From decoded messages to events, without a database: what the server sends seldom or only by chance."""

from __future__ import annotations

from hypothesis import given, strategies as st
from tests.capture.encoding import encode
from tests.streams import table

from rowcast.capture.assembly import PUBLICATION, Assembler
from rowcast.capture.pgoutput import (
    Begin,
    Commit,
    Delete,
    Insert,
    LogicalMessage,
    Message,
    Origin,
    Relation,
    RelationColumn,
    Truncate,
    Type,
)
from rowcast.model import Event, Gap, Progress, Table, Transaction, make_position

EPOCH = "00000000000000ff"
JOBS = table("jobs", "id bigint, name text", oid=7)
RELATION = Relation(
    7, "public", "jobs", "full", (RelationColumn("id", 20, -1, True), RelationColumn("name", 25, -1, True))
)
ROW = (b"1", b"x")


def assembler(*, xid: int = 700, max_transaction_bytes: int = 10_000) -> Assembler:
    return Assembler(EPOCH, 100, xid, max_transaction_bytes)


def feed(to: Assembler, *messages: Message, bind: Table | None = JOBS) -> list[Event]:
    """Feed messages, binding every table that is asked for, and take the events."""
    for message in messages:
        while (wanted := to.feed(encode(message))) not in {None, PUBLICATION}:
            assert wanted is not None
            assert to.relation(wanted).oid == wanted
            to.bind(wanted, bind)
    events, to.events = to.events, []
    return events


def begin(xid: int = 701) -> Begin:
    return Begin(190, 5, xid)


def commit(end: int) -> Commit:
    return Commit(end - 10, end, 5)


def message(content: bytes) -> LogicalMessage:
    return LogicalMessage(True, 1, "rowcast", content)


def test_a_transaction_leaves_whole_at_its_commit() -> None:
    made = assembler()
    assert (
        feed(made, begin(), RELATION, Insert(7, ROW), Origin(1, "elsewhere"), Type(9, "public", "mood")) == []
    )
    [transaction] = feed(made, Delete(7, ROW), Truncate((7,), False, False), commit(200))
    assert isinstance(transaction, Transaction)
    assert (transaction.position, transaction.xid, transaction.timestamp_us) == (
        make_position(EPOCH, 200),
        701,
        5,
    )
    assert [(each.operation, each.new, each.old, each.index) for each in transaction.changes] == [
        ("INSERT", ROW, None, 0),
        ("DELETE", None, ROW, 1),
        ("TRUNCATE", None, None, 2),
    ]
    assert all(each.table is JOBS for each in transaction.changes)


def test_what_is_left_out_keeps_its_place_among_the_indices() -> None:
    other = Relation(8, "public", "gone", "full", ())
    made = assembler()
    feed(made, begin(), other, Insert(8, ()), bind=None)
    [transaction] = feed(made, RELATION, Truncate((8, 7), False, False), Insert(7, ROW), commit(200))
    assert isinstance(transaction, Transaction)
    assert [each.index for each in transaction.changes] == [2, 3]


def test_a_table_is_asked_for_once_a_relation_and_again_when_it_is_unbound() -> None:
    made = assembler()
    feed(made, begin(), RELATION)
    assert made.bound(7) is None
    assert made.feed(encode(Insert(7, ROW))) == 7
    made.bind(7, JOBS)
    assert made.bound(7) is JOBS
    assert made.feed(encode(Insert(7, ROW))) is None
    made.unbind(7)
    assert made.feed(encode(Truncate((7,), False, False))) == 7
    made.bind(7, JOBS)
    feed(made, RELATION)
    assert made.feed(encode(Insert(7, ROW))) == 7


def test_keepalives_move_the_position_between_transactions_only_and_never_back() -> None:
    made = assembler()
    made.pass_keepalive(90)
    assert made.events == []
    made.pass_keepalive(120)
    made.pass_keepalive(130)
    assert feed(made, begin()) == [Progress(make_position(EPOCH, 130))]
    made.pass_keepalive(140)
    assert feed(made, commit(200)) == [Progress(make_position(EPOCH, 200))]
    made.pass_keepalive(200)
    assert made.events == []


def test_a_transaction_over_the_bound_names_every_table_that_it_touched() -> None:
    other, emptied = (Relation(oid, "public", f"t{oid}", "full", RELATION.columns) for oid in (8, 9))
    made = assembler(max_transaction_bytes=1000)
    [gap] = feed(
        made,
        begin(),
        RELATION,
        message(b"confirm early"),
        *[Insert(7, ROW)] * 10,
        other,
        Insert(8, ROW),
        emptied,
        Truncate((7, 9), False, False),
        message(b"confirm late"),
        commit(200),
    )
    assert gap == Gap(make_position(EPOCH, 200), "transaction_too_large", frozenset({7, 8, 9}), 701)
    [transaction] = feed(made, begin(702), Insert(7, ROW), commit(300))
    assert isinstance(transaction, Transaction)
    assert [each.index for each in transaction.changes] == [0]


def test_confirmations_count_towards_the_bound() -> None:
    made = assembler(max_transaction_bytes=1000)
    [gap] = feed(made, begin(), *[message(b"confirm " + b"m" * 100)] * 10, commit(200))
    assert gap == Gap(make_position(EPOCH, 200), "transaction_too_large", frozenset(), 701)


def test_the_publication_is_to_be_read_again_after_the_transaction_that_changed_it() -> None:
    made = assembler()
    feed(made, begin(), message(b"tables"))
    assert made.feed(encode(commit(200))) == PUBLICATION
    assert made.events == [Progress(make_position(EPOCH, 200))]
    feed(made, begin(702))
    assert made.feed(encode(commit(300))) is None


@given(st.integers(2**31, 2**50), st.lists(st.integers(-(2**31) + 1, 2**31 - 1), max_size=5))
def test_transaction_ids_are_widened_to_the_nearest(reference: int, steps: list[int]) -> None:
    made = assembler(xid=reference)
    xid = reference
    for number, step in enumerate(steps):
        xid = max(3, xid + step)
        feed(made, begin(xid % 2**32), commit(1000 + number))
        assert made.xid == xid
