"""capture.catalog against real servers: the stream itself says which columns a table must have."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest
from psycopg.rows import dict_row

from rowcast.capture.catalog import load_relation, load_tables, load_tables_by_oid
from rowcast.capture.pgoutput import Decoder, Insert, Relation
from rowcast.errors import CaptureError
from rowcast.model import Collation, ColumnTraits, Table
from rowcast.testing import EmbeddedPostgres, EmbeddedPostgresError

_numbers = itertools.count(1)


@pytest.fixture(scope="module", params=[18, 16, 15])
def server(request: pytest.FixtureRequest, postgres: EmbeddedPostgres) -> Iterator[EmbeddedPostgres]:
    """The run's cluster and one of each older version there is here."""
    if request.param == postgres.version:
        yield postgres
        return
    try:
        older = EmbeddedPostgres(version=request.param)
    except EmbeddedPostgresError as error:
        pytest.skip(str(error))
    with older:
        yield older


@pytest.fixture
async def database(server: EmbeddedPostgres) -> AsyncIterator[psycopg.AsyncConnection]:
    """An autocommit connection to a fresh database."""
    name = f"catalog_{next(_numbers)}"
    async with await psycopg.AsyncConnection.connect(
        server.create_database(name), autocommit=True
    ) as connection:
        yield connection
    server.drop_database(name)


async def oid_of(database: psycopg.AsyncConnection, name: str, kind: str = "regclass") -> int:
    cursor = await database.execute(f"SELECT '{name}'::{kind}::oid".encode())
    [[oid]] = await cursor.fetchall()
    return int(oid)


async def stream(database: psycopg.AsyncConnection, script: str) -> tuple[dict[int, Relation], list[Insert]]:
    """Run a script and give what the publication's stream said of it: tables and inserted rows."""
    await database.execute("SELECT pg_create_logical_replication_slot('catalog', 'pgoutput', true)")
    await database.execute(script.encode())
    cursor = await database.execute(
        "SELECT data FROM pg_logical_slot_get_binary_changes('catalog', NULL, NULL, "
        "'proto_version', '1', 'publication_names', 'p')"
    )
    decoder = Decoder()
    messages = [decoder.decode(data) for [data] in await cursor.fetchall()]
    await database.execute("SELECT pg_drop_replication_slot('catalog')")
    return decoder.relations, [message for message in messages if isinstance(message, Insert)]


def as_streamed(table: Table) -> tuple[object, ...]:
    columns = tuple((column.name, column.type_oid, column.type_modifier) for column in table.columns)
    return table.oid, table.schema, table.name, table.replica_identity, columns


def as_loaded(relation: Relation) -> tuple[object, ...]:
    columns = tuple(column[:3] for column in relation.columns)
    return relation.oid, relation.schema, relation.name, relation.replica_identity, columns


def names_of_key(table: Table) -> list[str]:
    return [table.columns[index].name for index in table.key]


SHOP = """
    CREATE SCHEMA "Sales & Co";
    CREATE TABLE plain (gone text, id bigint PRIMARY KEY, name varchar(20), price numeric(10, 2) NOT NULL DEFAULT 1);
    ALTER TABLE plain DROP COLUMN gone;
    ALTER TABLE plain ADD COLUMN doubled numeric GENERATED ALWAYS AS (price * 2) STORED, ADD COLUMN late date;
    CREATE TABLE "Sales & Co"."Order ""7" (
        note text, "Line" integer, "order" integer, PRIMARY KEY ("order", "Line") INCLUDE (note)
    );
    ALTER TABLE "Sales & Co"."Order ""7" REPLICA IDENTITY FULL;
    CREATE TABLE keyless (a integer);
    CREATE TABLE indexed (a integer, b integer NOT NULL, c integer NOT NULL);
    CREATE UNIQUE INDEX by_c_b ON indexed (c, b) INCLUDE (a);
    ALTER TABLE indexed REPLICA IDENTITY USING INDEX by_c_b;
    CREATE TABLE nothing (id integer PRIMARY KEY);
    ALTER TABLE nothing REPLICA IDENTITY NOTHING;
    CREATE TABLE listed (id integer PRIMARY KEY, secret text, shown text);
    CREATE TABLE parted (at date, id integer, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
    CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
    CREATE TABLE unpublished (id integer PRIMARY KEY);
    CREATE PUBLICATION p FOR TABLE
        plain, "Sales & Co"."Order ""7", keyless, indexed, nothing, listed (id, shown), parted
        WITH (publish_via_partition_root = true);
"""
SALES = """
    INSERT INTO plain (id) VALUES (1);
    INSERT INTO "Sales & Co"."Order ""7" VALUES ('n', 1, 1);
    INSERT INTO keyless VALUES (1);
    INSERT INTO indexed VALUES (1, 2, 3);
    INSERT INTO nothing VALUES (1);
    INSERT INTO listed VALUES (1, 's', 't');
    INSERT INTO parted VALUES ('2026-11-21', 1);
    INSERT INTO unpublished VALUES (1);
"""


async def test_tables_are_what_the_stream_says_of_them(database: psycopg.AsyncConnection) -> None:
    await database.execute(SHOP.encode())
    tables = await load_tables(database, "p")
    relations, inserts = await stream(database, SALES)
    # The partition has a Relation message of its own, though its changes go under the root's name.
    assert {oid: as_streamed(table) for oid, table in tables.items()} == {
        oid: as_loaded(relations[oid]) for oid in {insert.oid for insert in inserts}
    }
    assert {table.channel for table in tables.values()} == {
        *("plain", 'Sales & Co.Order "7', "keyless", "indexed", "nothing", "listed", "parted")
    }


async def test_the_key_is_the_primary_key_in_its_own_order_or_the_replica_identity_or_empty(
    database: psycopg.AsyncConnection,
) -> None:
    await database.execute(SHOP.encode())
    await database.execute(
        "ALTER PUBLICATION p SET TABLE listed (shown), plain, keyless, indexed, nothing, parted"
    )
    await database.execute('ALTER PUBLICATION p ADD TABLE "Sales & Co"."Order ""7"')
    tables = await load_tables(database, "p")
    assert {table.name: names_of_key(table) for table in tables.values()} == {
        "plain": ["id"],
        'Order "7': ["order", "Line"],
        "keyless": [],
        "indexed": ["c", "b"],
        "nothing": ["id"],
        "listed": [],  # its primary key is not published
        "parted": ["id", "at"],
    }


async def test_without_a_primary_key_among_the_columns_the_replica_identity_is_the_key(
    database: psycopg.AsyncConnection,
) -> None:
    await database.execute("CREATE TABLE t (id integer PRIMARY KEY, code text NOT NULL UNIQUE)")
    await database.execute("ALTER TABLE t REPLICA IDENTITY USING INDEX t_code_key")
    await database.execute("CREATE PUBLICATION p FOR TABLE t (code)")
    [table] = (await load_tables(database, "p")).values()
    assert names_of_key(table) == ["code"]


async def test_partitions_stand_for_themselves_unless_published_via_the_root(
    database: psycopg.AsyncConnection,
) -> None:
    await database.execute(SHOP.encode())
    await database.execute("CREATE PUBLICATION leaves FOR TABLE parted")
    [table] = (await load_tables(database, "leaves")).values()
    assert (table.name, names_of_key(table)) == ("parted_1", ["id", "at"])


async def test_all_tables_and_schemas_are_expanded(database: psycopg.AsyncConnection) -> None:
    await database.execute(SHOP.encode())
    await database.execute("CREATE PUBLICATION everything FOR ALL TABLES")
    await database.execute('CREATE PUBLICATION one_schema FOR TABLES IN SCHEMA "Sales & Co"')
    everything = await load_tables(database, "everything")
    assert {table.name for table in everything.values()} == {
        *("plain", 'Order "7', "keyless", "indexed", "nothing", "listed", "parted_1", "unpublished")
    }
    assert [table.name for table in (await load_tables(database, "one_schema")).values()] == ['Order "7']
    assert await load_tables(database, "no such publication") == {}


async def test_generated_columns_are_there_when_the_publication_sends_them(
    server: EmbeddedPostgres, database: psycopg.AsyncConnection
) -> None:
    if server.version < 18:
        pytest.skip("publish_generated_columns came with PostgreSQL 18")
    await database.execute(
        "CREATE TABLE t (id integer PRIMARY KEY, stored integer GENERATED ALWAYS AS (id + 1) STORED,"
        " computed integer GENERATED ALWAYS AS (id + 2) VIRTUAL)"
    )
    await database.execute("CREATE PUBLICATION p FOR TABLE t WITH (publish_generated_columns = stored)")
    tables = await load_tables(database, "p")
    relations, _ = await stream(database, "INSERT INTO t VALUES (1)")
    assert [as_streamed(table) for table in tables.values()] == [as_loaded(one) for one in relations.values()]
    assert [column.name for [table] in [tables.values()] for column in table.columns] == ["id", "stored"]


async def test_tables_by_oid_have_the_columns_of_a_publication_without_lists(
    database: psycopg.AsyncConnection,
) -> None:
    await database.execute(SHOP.encode())
    await database.execute("ALTER PUBLICATION p SET TABLE plain, listed, parted")
    published = await load_tables(database, "p")
    assert await load_tables_by_oid(database, [*published, 4_000_000_000]) == published
    assert await load_tables_by_oid(database, []) == {}


async def test_a_relation_has_exactly_the_columns_of_its_message(database: psycopg.AsyncConnection) -> None:
    await database.execute(SHOP.encode())
    tables = await load_tables(database, "p")
    relations, _ = await stream(database, SALES)
    for oid, table in tables.items():
        assert await load_relation(database, oid, [column[:3] for column in relations[oid].columns]) == table
    [plain] = [table for table in tables.values() if table.name == "plain"]
    assert [column.type_name for column in plain.columns] == [
        *("bigint", "character varying(20)", "numeric(10,2)", "date")
    ]


async def test_a_relation_from_before_a_change_of_schema_keeps_what_its_message_said(
    database: psycopg.AsyncConnection,
) -> None:
    await database.execute("CREATE TABLE t (a integer, b integer, c text, PRIMARY KEY (b, a))")
    await database.execute("CREATE PUBLICATION p FOR TABLE t")
    relations, _ = await stream(
        database,
        "INSERT INTO t VALUES (1, 2, 'x');"
        "ALTER TABLE t RENAME COLUMN b TO bee; ALTER TABLE t DROP COLUMN c; ALTER TABLE t RENAME TO renamed",
    )
    [relation] = relations.values()
    columns = [column[:3] for column in relation.columns]
    table = await load_relation(database, relation.oid, columns, schema=relation.schema, name=relation.name)
    assert as_streamed(table) == as_loaded(relation)
    assert table.key == ()
    renamed = await load_relation(database, relation.oid, columns)
    assert (renamed.schema, renamed.name) == ("public", "renamed")


async def test_a_dropped_relation_needs_the_names_of_its_message(database: psycopg.AsyncConnection) -> None:
    columns = [("id", 20, -1), ("mood", 4_000_000_000, -1)]
    with pytest.raises(CaptureError, match="dropped"):
        await load_relation(database, 4_000_000_001, columns)
    table = await load_relation(
        database, 4_000_000_001, columns, schema="public", name="t", replica_identity="full"
    )
    assert as_streamed(table) == (4_000_000_001, "public", "t", "full", tuple(columns))
    assert [column.to_json(b"1") for column in table.columns] == [b"1", b'"1"']


async def test_a_relation_without_columns_is_a_table(database: psycopg.AsyncConnection) -> None:
    await database.execute("CREATE TABLE t ()")
    table = await load_relation(database, await oid_of(database, "t"), [])
    assert (table.name, table.columns, table.key) == ("t", (), ())


async def test_types_are_resolved_down_to_built_in_ones(database: psycopg.AsyncConnection) -> None:
    await database.execute("""
        CREATE TYPE mood AS ENUM ('fine', 'so "so"');
        CREATE DOMAIN price AS numeric(10, 2);
        CREATE DOMAIN prices AS price[];
        CREATE TYPE item AS (gone integer, label text, prices prices, moods mood[]);
        ALTER TYPE item DROP ATTRIBUTE gone;
        CREATE TYPE span AS RANGE (subtype = timestamptz);
        CREATE TABLE other (id integer, corner box[]);
        CREATE TABLE t (id integer PRIMARY KEY, items item[], others other, span span, spans span_multirange);
        CREATE PUBLICATION p FOR TABLE t;
    """)
    [table] = (await load_tables(database, "p")).values()
    _, [insert] = await stream(
        database,
        """
        SET timezone = 'UTC';
        INSERT INTO t VALUES (
            1, ARRAY[ROW('a "b"', ARRAY[1, 2.50], '{fine,"so \\"so\\""}'), NULL]::item[],
            ROW(7, ARRAY['(1,1),(0,0)', '(2,2),(1,1)']::box[]), '[2026-11-21,)', '{[2026-11-21,2026-11-22)}'
        )
        """,
    )
    written = {
        column.name: column.to_json(value)
        for column, value in zip(table.columns, insert.new, strict=True)
        if isinstance(value, bytes)
    }
    assert written == {
        "id": b"1",
        "items": rb'[{"label":"a \"b\"","prices":[1.00,2.50],"moods":["fine","so \"so\""]},null]',
        "others": b'{"id":7,"corner":["(1,1),(0,0)","(2,2),(1,1)"]}',
        "span": rb'"[\"2026-11-21 00:00:00+00\",)"',
        "spans": rb'"{[\"2026-11-21 00:00:00+00\",\"2026-11-22 00:00:00+00\")}"',
    }


async def test_columns_carry_what_filters_need_to_know(database: psycopg.AsyncConnection) -> None:
    await database.execute("""
        CREATE TYPE mood AS ENUM ('so', 'fine');
        ALTER TYPE mood ADD VALUE 'bad' BEFORE 'so';
        CREATE DOMAIN feeling AS mood;
        CREATE DOMAIN deep_feeling AS feeling;
        CREATE TABLE t (
            plain integer, mood mood, moods mood[], feeling deep_feeling, feelings feeling[], tables regclass[],
            byte_order text COLLATE "C", words text[], document jsonb, own_name name
        );
        CREATE PUBLICATION p FOR TABLE t;
    """)
    [table] = (await load_tables(database, "p")).values()
    traits = {column.name: column.traits for column in table.columns}
    mood, feeling = await oid_of(database, "mood", "regtype"), await oid_of(database, "feeling", "regtype")
    by_bytes = Collation("C", deterministic=True, code_point_order=True, lower="ascii")
    default = Collation("C.UTF-8", deterministic=True, code_point_order=True, lower="simple")
    labels = ("bad", "so", "fine")
    assert traits == {
        "plain": ColumnTraits(),
        "mood": ColumnTraits(enum_labels=labels),
        "moods": ColumnTraits(element_oid=mood, enum_labels=labels),
        "feeling": ColumnTraits(base_oid=mood, enum_labels=labels),
        "feelings": ColumnTraits(element_oid=feeling),
        "tables": ColumnTraits(),
        "byte_order": ColumnTraits(collation=by_bytes),
        "words": ColumnTraits(collation=default),
        "document": ColumnTraits(collation=default),
        "own_name": ColumnTraits(collation=by_bytes),
    }
    columns = [(column.name, column.type_oid, column.type_modifier) for column in table.columns]
    assert await load_relation(database, table.oid, columns) == table


async def test_what_is_said_of_collations_is_true(database: psycopg.AsyncConnection) -> None:
    """For every collation of the server: order and lower() are as described, or nothing is claimed."""
    cursor = await database.execute(
        "SELECT DISTINCT ON (collname) collname::text, collnamespace::regnamespace::text FROM pg_collation"
        " WHERE collencoding IN (-1, pg_char_to_encoding('UTF8'))"
    )
    named = [
        (f'{schema}."{name}"', f"c{place}") for place, (name, schema) in enumerate(await cursor.fetchall())
    ]
    await database.execute(
        f"CREATE TABLE t ({', '.join(f'{c} text COLLATE {n}' for n, c in named)})".encode()
    )
    [table] = (await load_tables_by_oid(database, [await oid_of(database, "t")])).values()
    words = ["a", "B", "á", "Z", "-", "a-b", "ab", "ﬀ", "😀"]
    kinds = set()
    for (name, _), column in zip(named, table.columns, strict=True):
        collation = column.traits.collation
        assert collation is not None
        try:
            cursor = await database.execute(
                f"SELECT array_agg(w ORDER BY w COLLATE {name}), lower('ZÄİ' COLLATE {name}),"
                f" 'á' = (U&'a\\0301' COLLATE {name}) FROM unnest(%s::text[]) AS w".encode(),
                [words],
            )
        except psycopg.errors.FeatureNotSupported:  # a server built without ICU knows only the names
            continue
        [[ordered, lowered, equal]] = await cursor.fetchall()
        assert not (collation.code_point_order and ordered != sorted(words)), name
        assert not (collation.deterministic and equal), name
        expected = {"ascii": "zÄİ", "simple": "zäi", "full": "zäi\u0307"}
        assert collation.lower == "other" or lowered == expected[collation.lower], name
        kinds.add((collation.code_point_order, collation.lower))
    assert {(True, "ascii"), (True, "simple")} <= kinds


async def test_reading_needs_no_privilege_on_the_tables_and_no_setting_of_the_connection(
    server: EmbeddedPostgres, database: psycopg.AsyncConnection
) -> None:
    await database.execute(SHOP.encode())
    tables = await load_tables(database, "p")
    role = f"reader_{next(_numbers)}"
    await database.execute(f"CREATE ROLE {role} LOGIN".encode())
    dsn = server.dsn(database.info.dbname, user=role)
    async with await psycopg.AsyncConnection.connect(dsn, row_factory=dict_row) as connection:
        assert await load_tables(connection, "p") == tables
        assert await load_tables_by_oid(connection, [*tables]) != {}
    await database.execute(f"DROP ROLE {role}".encode())
