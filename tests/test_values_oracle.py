"""values against PostgreSQL itself: every row of every type must be the JSON that to_jsonb() makes of it.

Rows are read with COPY, as snapshots are, by the types that the catalogs tell, and written by a RowEncoder: the
comparison is of whole rows with to_jsonb(row).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from rowcast.capture.catalog import load_tables_by_oid
from rowcast.testing import EmbeddedPostgres, EmbeddedPostgresError
from rowcast.values import RowEncoder, TypeCatalog, parse_copy_line, session_options

# What is the same on every supported version. Written as it stands between the quotes of a literal.
TEXTS = [
    "",
    " ",
    "x",
    'a "b" \\ {c},(d);',
    "NULL",
    "null",
    "\t\n\r\b\f\v\x01\x7f",
    "é😀\u2028\ufeff",
    "\\N",
    "''",
]
EXTREMES: dict[str, list[str]] = {
    "boolean": ["t", "f"],
    "smallint": ["-32768", "0", "32767"],
    "integer": ["-2147483648", "2147483647"],
    "bigint": ["-9223372036854775808", "9007199254740993", "9223372036854775807"],
    "oid": ["0", "4294967295"],
    "real": ["0", "-0", "1.5", "3.4028235e38", "1e-45", "1e10", "123456790", "NaN", "Infinity", "-Infinity"],
    "double precision": [
        *(
            "0",
            "-0",
            "0.1",
            "1e15",
            "1e16",
            "1.7976931348623157e308",
            "5e-324",
            "NaN",
            "Infinity",
            "-Infinity",
        )
    ],
    "numeric": [
        *(
            "0",
            "0.000",
            "-0.10",
            "1.500",
            "9007199254740993",
            "123456789012345678901234567890.12345678901234567890",
        ),
        *("9" * 200 + "." + "1" * 200, "0." + "0" * 300 + "1", "NaN", "Infinity", "-Infinity"),
    ],
    "numeric(10, 3)": ["1", "-1234567.125"],
    "money": ["0", "-92233720368547758.08", "92233720368547758.07", "1234.5"],
    "text": TEXTS,
    "varchar(10)": ["", "abc", 'é"\\'],
    "char(5)": ["", "ab", '"é\\'],
    '"char"': ["", "a", '"', "\\", "\\200", "\\377"],
    "name": ["", 'A "name"', "é" * 31],
    "bytea": ["", "\\x", "\\x00ff5c22", "abc"],
    "date": ["2026-11-21", "4713-01-01 BC", "5874897-12-31", "0001-12-31 BC", "infinity", "-infinity"],
    "time": ["00:00", "24:00:00", "23:59:59.999999", "12:30:00.5"],
    "timetz": ["00:00+00", "24:00:00-15:59:59", "12:30:00.5+05:30"],
    "timestamp": [
        *(
            "2026-11-21 09:30:00.123456",
            "2026-11-21",
            "4713-01-01 00:00:00 BC",
            "294276-12-31 23:59:59.999999",
        ),
        *("0001-12-31 23:59:59.9 BC", "10000-01-01", "infinity", "-infinity"),
    ],
    "timestamptz": [
        *(
            "2026-11-21 09:30:00.123456+05:30",
            "2026-11-21",
            "4713-01-01 00:00:00+00 BC",
            "1850-01-01 00:00:00",
        ),
        *(
            "294276-12-31 23:59:59.999999+00",
            "0001-12-31 23:59:59.9+00 BC",
            "10000-01-01",
            "infinity",
            "-infinity",
        ),
    ],
    "interval": [
        *("0", "1 year -2 mons +3 days -04:05:06.000007", "-178000000 years", "178000000 years", "1 day ago"),
        *("2562047788:00:54.775807", "-00:00:00.000001"),
    ],
    "uuid": ["00000000-0000-0000-0000-000000000000", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"],
    "json": [
        *(
            ' {"b" : [1, 2.50, 1e2, -0.0],\n\t"a":\r\n{} } ',
            '"\\u00e9\\ud83d\\ude00\\n\\/"',
            "null",
            "true",
            " 1 ",
        ),
        *('{"a":1,"a":2,"":[]}', '"é\x7f\u2028"', "123456789012345678901234567890.10", '["\\\\u12"]'),
    ],
    "jsonb": [
        '{"b": [1, 2.50, 1e2, {"c": "\\"\\\\\\n"}], "a": {}}',
        "null",
        '"x"',
        "[]",
        "1e100",
        "12345678901234567890",
    ],
    "jsonpath": ["$", '$.a[*] ? (@ > 1 && @."b c" == "x\\ny")'],
    "inet": ["127.0.0.1", "10.1.2.3/8", "::1", "2001:db8::ff/64"],
    "cidr": ["10.0.0.0/8", "2001:db8::/32"],
    "macaddr": ["08:00:2b:01:02:03"],
    "macaddr8": ["08:00:2b:01:02:03:04:05"],
    "bit(3)": ["101"],
    "varbit": ["", "0", "1101"],
    "int4range": ["empty", "[1,2)", "(,)", "[-2147483648,)"],
    "int8range": ["[1,9007199254740993)"],
    "numrange": ["(1.5,2.50]", "[NaN,NaN]", "(-Infinity,)"],
    "daterange": ["[2026-11-21,infinity)", "[0044-03-15 BC,2026-11-21)"],
    "tsrange": ["[2026-11-21 09:30,)", "(-infinity,infinity)"],
    "tstzrange": ["[2026-11-21 09:30+05:30,2026-11-22)"],
    "int4multirange": ["{}", "{[1,2),[5,7)}"],
    "int8multirange": ["{(,)}"],
    "nummultirange": ["{[1.5,2],(3,)}"],
    "datemultirange": ["{[2026-11-21,2026-11-22)}"],
    "tsmultirange": ["{[2026-11-21 09:30,2026-11-22)}"],
    "tstzmultirange": ["{[2026-11-21 09:30,2026-11-22),[2027-01-01,)}"],
    "point": ["(1,2)", "(-1.5e300,Infinity)", "(NaN,0)"],
    "line": ["{1,-1,0.5}"],
    "lseg": ["[(1,2),(3,4)]"],
    "box": ["(1,2),(3,4)"],
    "path": ["((1,2),(3,4))", "[(1,2),(3,4)]"],
    "polygon": ["((1,2),(3,4),(5,6))"],
    "circle": ["<(1,2),3>"],
    "tsvector": ["", "fat:1A,2B 'it''s':3 'back\\\\slash' \"quoted\""],
    "tsquery": ["", "fat & (rat | !cat:*A) <-> 'it''s'"],
    "pg_lsn": ["0/0", "FFFFFFFF/FFFFFFFF"],
    "pg_snapshot": ["10:20:10,14,15"],
    "txid_snapshot": ["10:20:10,14,15"],
    "xid": ["4294967295"],
    "xid8": ["18446744073709551615"],
    "cid": ["7"],
    "tid": ["(4294967295,65535)"],
    "int2vector": ["", "1", "1 -2 3"],
    "oidvector": ["", "1", "1 2 4294967295"],
    "refcursor": ['a "b"'],
    "aclitem": ["postgres=r*w/postgres"],
    "regclass": ["pg_class", '"Odd ""table"""', "-", "4000000000"],
    "regcollation": ['"C"'],
    "regconfig": ["english"],
    "regdictionary": ["english_stem"],
    "regnamespace": ["pg_catalog"],
    "regoper": ["pg_catalog.||/"],
    "regoperator": ["+(integer,integer)"],
    "regproc": ["now"],
    "regprocedure": ["pg_sleep(double precision)"],
    "regrole": ["postgres"],
    "regtype": ["timestamp with time zone", "integer[]", '"char"'],
}


class Oracle:
    """A server, and what it says of our JSON."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        self.version = server.version
        self.dsn = server.dsn("oracle")
        self._runner = asyncio.Runner()
        self._connection = self._runner.run(
            psycopg.AsyncConnection.connect(self.dsn, autocommit=True, options=session_options())
        )

    def close(self) -> None:
        self._runner.run(self._connection.close())
        self._runner.close()

    def query(self, statement: str) -> list[tuple[object, ...]]:
        return self._runner.run(self._query(statement))

    async def _query(self, statement: str) -> list[tuple[object, ...]]:
        cursor = await self._connection.execute(statement.encode())
        return await cursor.fetchall() if cursor.description else []

    def compare(
        self, declarations: Sequence[str], types: Sequence[str], rows: Sequence[Sequence[str]]
    ) -> None:
        """Make a table with a column of each type, insert the rows of SQL expressions, compare, and undo all."""
        self._runner.run(self._compare(declarations, types, rows))

    async def _compare(
        self, declarations: Sequence[str], types: Sequence[str], rows: Sequence[Sequence[str]]
    ) -> None:
        columns = ", ".join(f'"c{place} ""%s""" {name}' for place, name in enumerate(types))
        lines = ", ".join(f"({', '.join(row)})" for row in rows)
        script = ";\n".join([*declarations, f"CREATE TABLE t ({columns})", f"INSERT INTO t VALUES {lines}"])
        async with self._connection.transaction(force_rollback=True), self._connection.cursor() as cursor:
            await cursor.execute(script.encode())
            [[oid]] = await (await cursor.execute("SELECT 't'::regclass::oid")).fetchall()
            [table] = (await load_tables_by_oid(self._connection, [oid])).values()
            encode = RowEncoder(table.columns).encode
            async with cursor.copy("COPY (SELECT t.*, to_jsonb(t) FROM t) TO STDOUT") as copy:
                read = [parse_copy_line(bytes(line)) async for line in copy]
        assert len(read) == len(rows)
        for row in read:
            expected = row[-1]
            assert isinstance(expected, bytes)
            written = encode(row)
            assert b"\n" not in written
            assert exact(written) == exact(expected)


def exact(text: bytes) -> object:
    """JSON with numbers to the last digit, not to be confused with booleans."""
    number = lambda digits: ("number", Decimal(digits))  # noqa: E731
    return json.loads(text, parse_float=number, parse_int=number)


@pytest.fixture(scope="module", params=[18, 16, 15])
def oracle(request: pytest.FixtureRequest, postgres: EmbeddedPostgres) -> Iterator[Oracle]:
    """The run's cluster, and one of each older version there is here."""
    with contextlib.ExitStack() as stack:
        server = postgres
        if request.param != postgres.version:
            try:
                server = stack.enter_context(EmbeddedPostgres(version=request.param))
            except EmbeddedPostgresError as error:
                pytest.skip(str(error))
        server.create_database("oracle")
        oracle = Oracle(server)
        yield oracle
        oracle.close()
        server.drop_database("oracle")


def literal(text: str, type_name: str) -> str:
    return "'" + text.replace("'", "''") + f"'::{type_name}"


def array(expressions: Sequence[str], type_name: str) -> str:
    return f"ARRAY[{', '.join(expressions)}]::{type_name}[]"


def with_bounds(lower: Sequence[int], lengths: Sequence[int], expression: str, type_name: str) -> str:
    bounds = "".join(f"[{first}:{first + length - 1}]" for first, length in zip(lower, lengths, strict=True))
    return f"('{bounds}=' || ({expression})::text)::{type_name}[]"


@pytest.mark.parametrize("type_name", EXTREMES)
def test_extreme_values_alone_and_in_arrays_domains_and_composites(oracle: Oracle, type_name: str) -> None:
    values = [literal(text, type_name) for text in EXTREMES[type_name]]
    declarations = [
        'CREATE TABLE "Odd ""table""" ()',
        f"CREATE DOMAIN bound AS {type_name}",
        f'CREATE TYPE pair AS ("a ""b""" {type_name}, "%" bound, "C" {type_name}[])',
    ]
    types = [type_name, "bound", "pair", f"{type_name}[]", "bound[]", "pair[]"]
    whole = array([*values, "NULL"], type_name)
    lists = [
        (f"ROW(NULL, NULL, {whole})::pair", whole, f"ARRAY[{values[0]}, NULL]::bound[]"),
        ("ROW(NULL, NULL, NULL)::pair", f"'{{}}'::{type_name}[]", "'{}'::bound[]"),
        ("NULL", with_bounds([0], [len(values) + 1], whole, type_name), "NULL"),
        ("NULL", f"ARRAY[{whole}, {whole}]", "NULL"),
    ]
    rows = [
        [values[0], "NULL", pair, several, bound, f"ARRAY[{pair}]::pair[]"] for pair, several, bound in lists
    ]
    for value in values:
        pair = f"ROW({value}, {value}, ARRAY[{value}]::{type_name}[])::pair"
        rows.append(
            [value, value, pair, array([value], type_name), f"ARRAY[{value}]::bound[]", f"ARRAY[{pair}]"]
        )
    oracle.compare(declarations, types, rows)


def test_infinite_intervals(oracle: Oracle) -> None:
    if oracle.version < 17:
        pytest.skip("intervals are finite before PostgreSQL 17")
    oracle.compare([], ["interval"], [["'infinity'"], ["'-infinity'"]])


def test_xml(oracle: Oracle) -> None:
    try:
        oracle.query("SELECT '<a/>'::xml")
    except psycopg.errors.FeatureNotSupported:
        pytest.skip("this server was built without libxml")
    oracle.compare(
        [], ["xml", "xml[]"], [["""'<a b="c">\n&lt;é</a>'""", """ARRAY['<a b="c"/>', '']::xml[]"""]]
    )


def test_session_options_make_text_the_same_whatever_the_database_prefers(oracle: Oracle) -> None:
    oracle.query(
        "DO $$ BEGIN"
        " ALTER DATABASE oracle SET datestyle = 'German'; ALTER DATABASE oracle SET timezone = 'Asia/Kolkata';"
        " ALTER DATABASE oracle SET intervalstyle = 'iso_8601'; ALTER DATABASE oracle SET bytea_output = 'escape';"
        " ALTER DATABASE oracle SET extra_float_digits = -5; ALTER DATABASE oracle SET client_encoding = 'LATIN1';"
        " END $$"
    )
    with psycopg.connect(oracle.dsn, options=session_options()) as connection, connection.cursor() as cursor:
        statement = (
            b"COPY (SELECT timestamptz '2026-11-21 09:30+00', date '2026-11-21', interval '-1 mon 2 days',"
            b" 0.1::float8 + 0.2::float8, '\\xff00'::bytea, U&'\\20AC', 1234.5::numeric::money) TO STDOUT"
        )
        with cursor.copy(statement) as copy:
            assert [parse_copy_line(bytes(line)) for line in copy] == [
                (
                    *(b"2026-11-21 09:30:00+00", b"2026-11-21", b"-1 mons +2 days", b"0.30000000000000004"),
                    *(rb"\xff00", "€".encode(), b"$1,234.50"),
                )
            ]


def test_every_built_in_array_type_is_known_without_a_description(oracle: Oracle) -> None:
    arrays = oracle.query(
        "SELECT type.oid, type.typname FROM pg_type AS type JOIN pg_type AS element ON element.oid = type.typelem"
        " WHERE type.oid < 10000 AND type.typoutput = 'array_out'::regproc AND element.typtype IN ('b', 'r', 'm')"
    )
    assert len(arrays) > 70
    for oid, name in arrays:
        assert isinstance(oid, int)
        assert TypeCatalog().encoder(oid)(b"{NULL}") == b"[null]", name


# PostgreSQL takes neither NUL nor surrogates.
strings = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | strings,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(strings, inner, max_size=3),
    max_leaves=6,
)


def integers(bits: int) -> SearchStrategy[str]:
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).map(str)


@st.composite
def numerics(draw: DrawFn) -> str:
    return f"{Decimal(draw(st.integers(-(10**30), 10**30))).scaleb(-draw(st.integers(0, 25))):f}"


@st.composite
def json_texts(draw: DrawFn) -> str:
    ascii_only, indent = draw(st.booleans()), draw(st.sampled_from([None, 0, 1]))
    return json.dumps(draw(documents), ensure_ascii=ascii_only, indent=indent)


@st.composite
def moments(draw: DrawFn, origin: str) -> str:
    """A timestamp at any distance from 2000-01-01 that fits."""
    return f"{origin} + interval '{draw(st.integers(-211813488000000000, 9223371331199999999))} us'"


LITERALS: dict[str, SearchStrategy[str]] = {
    "smallint": integers(16),
    "integer": integers(32),
    "bigint": integers(64),
    "real": st.floats(width=32).map(repr),
    "double precision": st.floats().map(repr),
    "numeric": numerics(),
    "text": strings,
    "char(5)": strings.map(lambda text: text[:5]),
    "bytea": st.binary(max_size=12).map(lambda data: "\\x" + data.hex()),
    "interval": st.tuples(integers(31), integers(32), integers(62)).map(
        lambda parts: "{} mons {} days {} us".format(*parts)
    ),
    "uuid": st.uuids().map(str),
    "json": json_texts(),
    "jsonb": json_texts(),
    "inet": st.ip_addresses().map(str),
    "varbit": st.text("01"),
}
EXPRESSIONS: dict[str, SearchStrategy[str]] = {
    "date": st.integers(-2451545, 2145031948).map(lambda days: f"date '2000-01-01' + {days}"),
    "timestamp": moments("timestamp '2000-01-01'"),
    "timestamptz": moments("timestamptz '2000-01-01 00:00+00'"),
}
RANGED = ["text", "numeric", "double precision", "timestamptz", "interval", "uuid", "jsonb", "inet"]
NAMES = ["a", "A b", 'q"q', "é", "%s", "{}", "a,b", "\\"]


def scalars(type_name: str) -> SearchStrategy[str]:
    """SQL expressions of a built-in type: extremes, and anything where there is a way to make it."""
    texts = st.sampled_from(EXTREMES[type_name]) | LITERALS.get(type_name, st.nothing())
    written = texts.map(lambda text: literal(text, type_name))
    return written | EXPRESSIONS.get(type_name, st.nothing())


@dataclass(frozen=True)
class Type:
    """A type to be: what declares it and what it is made of, and its values as SQL expressions."""

    name: str
    declarations: tuple[str, ...]
    values: SearchStrategy[str]


def quoted_name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def make_type(draw: DrawFn, numbers: Iterator[int], depth: int, *, element: bool = False) -> Type:
    """Draw a type; as an `element` one that is no array, for arrays of arrays are not types of their own."""
    makers = [make_scalar]
    if depth:
        makers += [make_enum, make_domain, make_composite, make_range] + [make_array] * (not element)
    return draw(st.sampled_from(makers))(draw, numbers, depth - 1)


def make_scalar(draw: DrawFn, numbers: Iterator[int], depth: int) -> Type:
    name = draw(st.sampled_from([*EXTREMES]))
    return Type(name, (), scalars(name))


def make_enum(draw: DrawFn, numbers: Iterator[int], depth: int) -> Type:
    name = f"enum_{next(numbers)}"
    labels = draw(st.lists(strings.filter(bool), min_size=1, max_size=3, unique=True))
    written = [literal(label, "text").removesuffix("::text") for label in labels]
    declaration = f"CREATE TYPE {name} AS ENUM ({', '.join(written)})"
    return Type(name, (declaration,), st.sampled_from(written).map(lambda label: f"{label}::{name}"))


def make_domain(draw: DrawFn, numbers: Iterator[int], depth: int) -> Type:
    base = make_type(draw, numbers, depth)
    name = f"domain_{next(numbers)}"
    declarations = (*base.declarations, f"CREATE DOMAIN {name} AS {base.name}")
    return Type(name, declarations, base.values.map(lambda value: f"({value})::{name}"))


def make_composite(draw: DrawFn, numbers: Iterator[int], depth: int) -> Type:
    fields = [make_type(draw, numbers, depth) for _ in range(draw(st.integers(0, 3)))]
    names = draw(st.permutations(NAMES))
    name = f"composite_{next(numbers)}"
    attributes = ", ".join(
        f"{quoted_name(own)} {field.name}" for own, field in zip(names, fields, strict=False)
    )
    declared = tuple(declaration for field in fields for declaration in field.declarations)
    values = st.tuples(*(st.just("NULL") | field.values for field in fields))
    return Type(
        name,
        (*declared, f"CREATE TYPE {name} AS ({attributes})"),
        values.map(lambda row: f"ROW({', '.join(row)})::{name}"),
    )


def make_range(draw: DrawFn, numbers: Iterator[int], depth: int) -> Type:
    subtype = draw(st.sampled_from(RANGED))
    name, several = f"range_{next(numbers)}", f"multirange_{next(numbers)}"
    declaration = f"CREATE TYPE {name} AS RANGE (subtype = {subtype}, multirange_type_name = {several})"

    def between(bounds: tuple[str, str, str]) -> str:
        first, second, kind = bounds
        if "NULL" in bounds:
            return f"{name}({first}, {second}, '{kind}')"
        return f"{name}(least({first}, {second}), greatest({first}, {second}), '{kind}')"

    bound = st.just("NULL") | scalars(subtype)
    ranges = st.tuples(bound, bound, st.sampled_from(["[]", "[)", "(]", "()"])).map(between)
    if draw(st.booleans()):
        return Type(name, (declaration,), ranges)
    multiranges = st.lists(ranges, max_size=3).map(lambda parts: f"{several}({', '.join(parts)})")
    return Type(several, (declaration,), multiranges)


def make_array(draw: DrawFn, numbers: Iterator[int], depth: int) -> Type:
    element = make_type(draw, numbers, depth, element=True)

    @st.composite
    def arrays(draw: DrawFn) -> str:
        lengths = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
        if 0 in lengths:
            return f"'{{}}'::{element.name}[]"

        def nested(lengths: Sequence[int]) -> str:
            if not lengths:
                return draw(st.just("NULL") | element.values)
            return array([nested(lengths[1:]) for _ in range(lengths[0])], element.name)

        written = nested(lengths)
        if draw(st.booleans()):
            return written
        return with_bounds([draw(st.integers(-2, 3)) for _ in lengths], lengths, written, element.name)

    return Type(f"{element.name}[]", element.declarations, arrays())


@st.composite
def tables(draw: DrawFn) -> tuple[list[str], list[str], list[list[str]]]:
    """Declarations, types of the columns, and rows of SQL expressions."""
    numbers = itertools.count(1)
    columns = [make_type(draw, numbers, depth=3) for _ in range(draw(st.integers(1, 6)))]
    rows = [
        [draw(st.just("NULL") | column.values) for column in columns] for _ in range(draw(st.integers(1, 3)))
    ]
    declarations = [declaration for column in columns for declaration in column.declarations]
    return ['CREATE TABLE "Odd ""table""" ()', *declarations], [column.name for column in columns], rows


def test_any_row_of_any_type_is_what_to_jsonb_says(oracle: Oracle) -> None:
    # Types change little between versions: the older ones get a sample.
    @settings(
        max_examples=100 if oracle.version == 18 else 20,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(table=tables())
    def compare(table: tuple[list[str], list[str], list[list[str]]]) -> None:
        oracle.compare(*table)

    compare()
