"""The decoder against bytes made by hand, against what a small encoder makes, and against PostgreSQL itself."""

from __future__ import annotations

import struct
from contextlib import suppress

import psycopg
import pytest
from hypothesis import given, strategies as st
from tests.capture.encoding import change, encode

from rowcast.capture.pgoutput import (
    Begin,
    Commit,
    Decoder,
    Delete,
    Insert,
    LogicalMessage,
    Message,
    Origin,
    Relation,
    RelationColumn,
    Truncate,
    Type,
    Update,
)
from rowcast.errors import DecodeError
from rowcast.model import MISSING

PROJECTS = Relation(
    oid=16385,
    schema="public",
    name="projects",
    replica_identity="default",
    columns=(
        RelationColumn("id", 23, -1, True),
        RelationColumn("name", 25, -1, False),
        RelationColumn("price", 1700, 655366, False),
    ),
)


@pytest.fixture
def decoder() -> Decoder:
    prepared = Decoder()
    prepared.decode(encode(PROJECTS))
    return prepared


words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
lsns = st.integers(0, 2**64 - 1)
oids = st.integers(1, 2**32 - 1)
times = st.integers(-(2**62), 2**62)
values = st.none() | st.binary(max_size=50)
columns = st.builds(RelationColumn, words, oids, st.integers(-1, 2**31 - 1), st.booleans())
plain_messages = st.one_of(
    st.builds(Begin, lsns, times, st.integers(0, 2**32 - 1)),
    st.builds(Commit, lsns, lsns, times),
    st.builds(LogicalMessage, st.booleans(), lsns, words, st.binary(max_size=100)),
    st.builds(Origin, lsns, words),
    st.builds(Type, oids, words.filter(bool), words),
    st.builds(
        Relation,
        oids,
        words.filter(bool),
        words,
        st.sampled_from(["default", "nothing", "full", "index"]),
        st.lists(columns, max_size=8).map(tuple),
    ),
    st.builds(Truncate, st.lists(oids, max_size=5).map(tuple), st.booleans(), st.booleans()),
)


@given(plain_messages, st.binary(max_size=30))
def test_every_message_comes_back_as_it_was_encoded_wherever_it_begins(
    message: Message, before: bytes
) -> None:
    assert Decoder().decode(before + encode(message), len(before)) == message


@st.composite
def tables_and_changes(draw: st.DrawFn) -> tuple[Relation, list[Message]]:
    count = draw(st.integers(0, 6))
    relation = Relation(7, "s", "t", "full", tuple(draw(st.lists(columns, min_size=count, max_size=count))))
    rows = st.tuples(*[values] * count)
    changes: st.SearchStrategy[Message] = st.one_of(
        st.builds(Insert, st.just(7), rows),
        st.builds(Update, st.just(7), st.none() | rows, rows),
        st.builds(Delete, st.just(7), rows),
    )
    return relation, draw(st.lists(changes, max_size=8))


@given(tables_and_changes())
def test_every_change_comes_back_as_it_was_encoded(example: tuple[Relation, list[Message]]) -> None:
    relation, changes = example
    decoder = Decoder()
    assert decoder.decode(encode(relation)) == relation
    for each in changes:
        assert decoder.decode(encode(each)) == each
    assert decoder.relations == {7: relation}


@given(tables_and_changes(), st.data())
def test_a_message_that_is_cut_short_or_goes_on_is_refused(
    example: tuple[Relation, list[Message]], data: st.DataObject
) -> None:
    relation, changes = example
    decoder = Decoder()
    decoder.decode(encode(relation))
    content = encode(data.draw(st.sampled_from([relation, *changes]) | plain_messages))
    with pytest.raises(DecodeError):
        decoder.decode(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(DecodeError):
        decoder.decode(content + data.draw(st.binary(min_size=1, max_size=9)))


@given(st.binary(max_size=60))
def test_garbage_is_refused_or_understood_and_nothing_else(content: bytes) -> None:
    decoder = Decoder()
    decoder.decode(encode(PROJECTS))
    with suppress(DecodeError):
        decoder.decode(content)


def test_an_unchanged_large_value_is_taken_from_the_full_old_row(decoder: Decoder) -> None:
    old = (b"1", b"long text", None)
    update = decoder.decode(change(b"U", PROJECTS.oid, [(b"O", old), (b"N", (b"1", MISSING, b"2.50"))]))
    assert update == Update(PROJECTS.oid, old, (b"1", b"long text", b"2.50"))


def test_an_unchanged_large_value_that_nobody_sent_is_missing(decoder: Decoder) -> None:
    assert decoder.decode(change(b"U", PROJECTS.oid, [(b"N", (b"1", MISSING, None))])) == Update(
        PROJECTS.oid, None, (b"1", MISSING, None)
    )


def test_of_an_old_key_only_the_key_is_known(decoder: Decoder) -> None:
    key = (b"1", None, None)
    assert decoder.decode(change(b"D", PROJECTS.oid, [(b"K", key)])) == Delete(
        PROJECTS.oid, (b"1", MISSING, MISSING)
    )
    assert decoder.decode(change(b"U", PROJECTS.oid, [(b"K", key), (b"N", (b"2", MISSING, None))])) == Update(
        PROJECTS.oid, (b"1", MISSING, MISSING), (b"2", MISSING, None)
    )


def test_a_later_relation_replaces_the_earlier_one(decoder: Decoder) -> None:
    wider = Relation(
        PROJECTS.oid, "public", "projects", "full", (*PROJECTS.columns, RelationColumn("note", 25, -1, True))
    )
    decoder.decode(encode(wider))
    assert decoder.decode(change(b"I", PROJECTS.oid, [(b"N", (b"1", b"a", None, b""))])) == Insert(
        PROJECTS.oid, (b"1", b"a", None, b"")
    )


def test_an_empty_schema_name_means_pg_catalog() -> None:
    decoder = Decoder()
    relation = decoder.decode(encode(Relation(1, "", "t", "full", ())))
    type_ = decoder.decode(encode(Type(2, "", "t")))
    assert isinstance(relation, Relation)
    assert isinstance(type_, Type)
    assert relation.schema == type_.schema == "pg_catalog"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "kind b'' and 0 bytes"),
        (b"S\0\0\0\1", "kind b'S', which protocol version 1 does not have"),
        (change(b"I", 9, [(b"N", (b"1",))]), "OID 9, which no Relation message has described"),
        (
            change(b"I", PROJECTS.oid, [(b"N", (b"1",))]),
            "has 1 values, but its Relation message named 3 columns",
        ),
        (change(b"I", PROJECTS.oid, [(b"O", (b"1", None, None))]), "'O' where a new row belongs"),
        (
            change(b"D", PROJECTS.oid, [(b"N", (b"1", None, None))]),
            "'N' stands where an old row or an old key",
        ),
        (
            change(b"U", PROJECTS.oid, [(b"O", (b"1", None, None)), (b"O", (b"1", None, None))]),
            "'O' where a new row belongs",
        ),
        (
            change(b"U", PROJECTS.oid, [(b"O", (b"1", None, None)), (b"N", (b"1", None))]),
            "has 2 values, but its Relation message named 3 columns",
        ),
        (
            b"I" + struct.pack("!IBH", PROJECTS.oid, ord("N"), 3) + b"nn" + b"b\0\0\0\1x",
            "a value is of kind 'b'",
        ),
        (b"O" + bytes(8) + b"name without end", "cut short or damaged"),
        (b"O" + bytes(8) + b"\xff\0", "cut short or damaged"),
        (b"R" + struct.pack("!I", 5) + b"s\0t\0x\0\0", "replica identity 'x' of unknown meaning"),
    ],
)
def test_what_is_wrong_is_said(decoder: Decoder, content: bytes, complaint: str) -> None:
    with pytest.raises(DecodeError, match=r".") as caught:
        decoder.decode(content)
    assert complaint in str(caught.value)


def test_what_postgresql_sends_is_understood(connection: psycopg.Connection) -> None:
    connection.execute(
        """
        CREATE TYPE mood AS ENUM ('sad', 'ok');
        CREATE TABLE "Weird.Name" ("a b" int PRIMARY KEY, "😀" text, m mood);
        CREATE TABLE whole (id int PRIMARY KEY, large text);
        ALTER TABLE whole REPLICA IDENTITY FULL;
        ALTER TABLE whole ALTER large SET STORAGE EXTERNAL;
        CREATE PUBLICATION p FOR TABLE "Weird.Name", whole;
        """
    )
    slot = f"decoder_{connection.info.dbname}"
    connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
    large = "x" * 10_000
    with connection.transaction():
        connection.execute("INSERT INTO \"Weird.Name\" VALUES (1, 'é', 'ok'), (2, NULL, NULL)")
        connection.execute("INSERT INTO whole VALUES (1, %s)", [large])
        connection.execute("UPDATE whole SET id = 2")
        connection.execute('UPDATE "Weird.Name" SET "a b" = 3 WHERE "a b" = 2')
        connection.execute('DELETE FROM "Weird.Name" WHERE "a b" = 1')
        connection.execute("SELECT pg_logical_emit_message(true, 'rowcast', 'heartbeat')")
        connection.execute('TRUNCATE whole, "Weird.Name" RESTART IDENTITY CASCADE')
    rows = connection.execute(
        "SELECT data, xid::text::bigint FROM pg_logical_slot_get_binary_changes(%s, NULL, NULL,"
        " 'proto_version', '1', 'publication_names', 'p', 'messages', 'true')",
        [slot],
    ).fetchall()

    decoder = Decoder()
    messages = [decoder.decode(data) for data, _ in rows]

    kinds = [type(message) for message in messages if not isinstance(message, Relation | Type)]
    assert kinds == [Begin, Insert, Insert, Insert, Update, Update, Delete, LogicalMessage, Truncate, Commit]
    weird, whole = (
        next(each for each in decoder.relations.values() if each.name == name)
        for name in ("Weird.Name", "whole")
    )
    assert [(column.name, column.is_key) for column in weird.columns] == [
        ("a b", True),
        ("😀", False),
        ("m", False),
    ]
    assert (weird.schema, weird.replica_identity, whole.replica_identity) == ("public", "default", "full")
    assert any(isinstance(message, Type) and message.name == "mood" for message in messages)
    assert [message for message in messages if isinstance(message, Insert)] == [
        Insert(weird.oid, (b"1", "é".encode(), b"ok")),
        Insert(weird.oid, (b"2", None, None)),
        Insert(whole.oid, (b"1", large.encode())),
    ]
    assert [message for message in messages if isinstance(message, Update)] == [
        Update(whole.oid, (b"1", large.encode()), (b"2", large.encode())),
        Update(weird.oid, (b"2", MISSING, MISSING), (b"3", None, None)),
    ]
    assert [message for message in messages if isinstance(message, Delete)] == [
        Delete(weird.oid, (b"1", MISSING, MISSING))
    ]
    [message] = [message for message in messages if isinstance(message, LogicalMessage)]
    assert (message.transactional, message.prefix, message.content) == (True, "rowcast", b"heartbeat")
    [truncate] = [message for message in messages if isinstance(message, Truncate)]
    assert set(truncate.oids) == {weird.oid, whole.oid}
    assert truncate.cascade
    assert truncate.restart_identity
    begin, commit = messages[0], messages[-1]
    assert isinstance(begin, Begin)
    assert isinstance(commit, Commit)
    assert begin.xid == rows[0][1] % 2**32
    assert begin.timestamp_us == commit.timestamp_us > 1_600_000_000_000_000
    assert begin.final_lsn == commit.commit_lsn < commit.end_lsn


def test_a_null_that_may_stand_for_a_value_that_was_not_logged_is_missing(decoder: Decoder) -> None:
    decoder.nulls_unknown.add(PROJECTS.oid)
    old = (b"1", b"name", None)
    update = change(b"U", PROJECTS.oid, [(b"O", old), (b"N", (b"2", b"name", MISSING))])
    assert decoder.decode(update) == Update(PROJECTS.oid, (b"1", b"name", MISSING), (b"2", b"name", MISSING))

    decoder.decode(encode(PROJECTS))

    assert decoder.decode(update) == Update(PROJECTS.oid, old, (b"2", b"name", None))
