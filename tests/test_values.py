"""values by examples: what an oracle test would not name, and everything around the encoders."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from rowcast.model import MISSING, Column, Row
from rowcast.values import (
    SESSION_SETTINGS,
    RowEncoder,
    TypeCatalog,
    TypeDescription,
    parse_copy_line,
    session_options,
)

BOOL, BYTEA, INT8, INT2VECTOR, TEXT, OIDVECTOR, JSON = 16, 17, 20, 22, 25, 30, 114
FLOAT8, TIMESTAMP, TIMESTAMPTZ, NUMERIC, JSONB = 701, 1114, 1184, 1700, 3802
INT4_ARRAY, TEXT_ARRAY, BOX_ARRAY, FLOAT8_ARRAY, BOOL_ARRAY = 1007, 1009, 1020, 1022, 1000
UNKNOWN = 424242


@pytest.mark.parametrize(
    ("type_oid", "text", "expected"),
    [
        (BOOL, b"t", b"true"),
        (BOOL, b"f", b"false"),
        (INT8, b"-9223372036854775808", b"-9223372036854775808"),
        (NUMERIC, b"9007199254740993.1500", b"9007199254740993.1500"),
        (NUMERIC, b"NaN", b'"NaN"'),
        (FLOAT8, b"-Infinity", b'"-Infinity"'),
        (FLOAT8, b"1e+300", b"1e+300"),
        (TEXT, b"", b'""'),
        (TEXT, 'a "quoted" \\ line\nand é😀'.encode(), '"a \\"quoted\\" \\\\ line\\nand é😀"'.encode()),
        (BYTEA, rb"\x00ff", rb'"\\x00ff"'),
        (TIMESTAMP, b"2026-11-21 09:30:00.5", b'"2026-11-21T09:30:00.5"'),
        (TIMESTAMP, b"0044-03-15 12:00:00 BC", b'"0044-03-15T12:00:00 BC"'),
        (TIMESTAMP, b"infinity", b'"infinity"'),
        (TIMESTAMPTZ, b"2026-11-21 09:30:00.123456+00", b'"2026-11-21T09:30:00.123456+00:00"'),
        (TIMESTAMPTZ, b"0044-03-15 12:00:00+00 BC", b'"0044-03-15T12:00:00+00:00 BC"'),
        (TIMESTAMPTZ, b"-infinity", b'"-infinity"'),
        (JSONB, b'{"a": [1, 2.50]}', b'{"a": [1, 2.50]}'),
        (INT2VECTOR, b"1 2", b"[1,2]"),
        (INT2VECTOR, b"", b"[]"),
        (OIDVECTOR, b"1 2", b'["1","2"]'),
        (OIDVECTOR, b"", b"[]"),
        (INT4_ARRAY, b"{}", b"[]"),
        (INT4_ARRAY, b"{1,NULL,-3}", b"[1,null,-3]"),
        (INT4_ARRAY, b"[0:1][2:2]={{1},{2}}", b"[[1],[2]]"),
        (FLOAT8_ARRAY, b"{1.5,NaN,NULL,Infinity}", b'[1.5,"NaN",null,"Infinity"]'),
        (BOOL_ARRAY, b"[5:6]={t,NULL}", b"[true,null]"),
        (TEXT_ARRAY, rb'{a,"","NULL",NULL,"{\"b\\,c\"}"}', rb'["a","","NULL",null,"{\"b\\,c\"}"]'),
        (BOX_ARRAY, b"{(1,1),(0,0);(2,2),(0,0)}", b'["(1,1),(0,0)","(2,2),(0,0)"]'),
        (UNKNOWN, b'say "so"', rb'"say \"so\""'),
    ],
)
def test_a_text_value_becomes_the_json_of_its_type(type_oid: int, text: bytes, expected: bytes) -> None:
    assert TypeCatalog().encoder(type_oid)(text) == expected


def test_json_is_kept_but_for_its_line_breaks() -> None:
    encode = TypeCatalog().encoder(JSON)
    assert encode(b'{"b" :1.0,\r\n "a":"\\n"}') == b'{"b" :1.0,   "a":"\\n"}'


def test_half_a_surrogate_pair_in_json_is_replaced_because_parsers_refuse_it() -> None:
    encode = TypeCatalog().encoder(JSON)
    assert encode(rb'["\ud800", "\uDC00x", "\ud83d\ude00", "\\ud800", "\u00e9\n"]') == (
        rb'["\ufffd", "\ufffdx", "\ud83d\ude00", "\\ud800", "\u00e9\n"]'
    )


def test_bytes_that_are_not_utf_8_still_become_json() -> None:
    assert json.loads(TypeCatalog().encoder(TEXT)(b"caf\xe9")) == "caf\ufffd"


def test_described_types_are_built_of_their_parts() -> None:
    catalog = TypeCatalog(
        [
            TypeDescription(50001, "mood", "enum"),
            TypeDescription(50002, "price", "domain", base_oid=NUMERIC),
            TypeDescription(
                50003,
                "item",
                "composite",
                attributes=(("label", TEXT), ("price", 50002), ('the "mood"', 50001)),
            ),
            TypeDescription(50004, "_item", "array", element_oid=50003),
            TypeDescription(50005, "order", "composite", attributes=(("items", 50004), ("paid", BOOL))),
            TypeDescription(50006, "span", "range"),
            TypeDescription(50007, "nothing", "composite"),
        ]
    )
    text = rb'("{""(\\""a, \\""\\""b\\""\\""\\"",1.50,ok)"",""(,,)""}",t)'
    assert catalog.encoder(50005)(text) == (
        rb'{"items":[{"label":"a, \"b\"","price":1.50,"the \"mood\"":"ok"},'
        rb'{"label":null,"price":null,"the \"mood\"":null}],"paid":true}'
    )
    assert catalog.encoder(50006)(b"[1,2)") == b'"[1,2)"'
    assert catalog.encoder(50007)(b"()") == b"{}"


def test_an_encoder_is_built_once() -> None:
    catalog = TypeCatalog([TypeDescription(50001, "_mood", "array", element_oid=UNKNOWN)])
    assert catalog.encoder(50001) is catalog.encoder(50001)


@pytest.mark.parametrize(
    "text",
    [
        b"(1,t,new)",  # an attribute more
        b"(1)",  # an attribute less
        b"(free text,t)",  # another type: would be broken JSON
        b"(1,maybe)",  # another type: no boolean
    ],
)
def test_a_row_value_that_no_longer_fits_its_type_is_a_string_and_never_broken_json(text: bytes) -> None:
    catalog = TypeCatalog(
        [TypeDescription(50001, "pair", "composite", attributes=(("a", INT8), ("b", BOOL)))]
    )
    assert json.loads(catalog.encoder(50001)(text)) == text.decode()


COLUMN_TYPES = (INT8, TEXT, BOOL, TIMESTAMPTZ, NUMERIC)
NAMES = ("id", 'the "name"', "100 %d", "at", "amount")
COLUMNS = tuple(
    Column(name, type_oid, -1, "", TypeCatalog().encoder(type_oid))
    for name, type_oid in zip(NAMES, COLUMN_TYPES, strict=True)
)
ROW: Row = (b"1", b"x", b"t", b"2026-11-21 09:30:00+00", b"1.50")


def test_a_row_is_an_object_of_its_columns_in_their_order() -> None:
    assert RowEncoder(COLUMNS).encode(ROW) == (
        rb'{"id":1,"the \"name\"":"x","100 %d":true,"at":"2026-11-21T09:30:00+00:00","amount":1.50}'
    )


def test_null_is_null_and_a_missing_column_is_left_out() -> None:
    encode = RowEncoder(COLUMNS).encode
    assert encode((None, None, None, None, None)) == (
        rb'{"id":null,"the \"name\"":null,"100 %d":null,"at":null,"amount":null}'
    )
    assert encode((b"1", MISSING, None, MISSING, b"NaN")) == b'{"id":1,"100 %d":null,"amount":"NaN"}'
    assert encode((MISSING,) * 5) == b"{}"


def test_a_row_can_be_written_in_part_and_in_another_order() -> None:
    encode = RowEncoder(COLUMNS, (2, 0)).encode
    assert encode(ROW) == b'{"100 %d":true,"id":1}'
    assert encode((b"1", MISSING, MISSING, MISSING, MISSING)) == b'{"id":1}'


def test_a_row_without_columns_is_an_empty_object() -> None:
    assert RowEncoder(()).encode(()) == b"{}"
    assert RowEncoder(COLUMNS, ()).encode(ROW) == b"{}"


def test_a_table_of_1600_columns_is_written() -> None:
    columns = tuple(
        Column(f"c{number}", INT8, -1, "bigint", TypeCatalog().encoder(INT8)) for number in range(1600)
    )
    row = tuple(b"%d" % number for number in range(1600))
    assert json.loads(RowEncoder(columns).encode(row)) == {f"c{number}": number for number in range(1600)}


def test_the_columns_own_encoder_is_used() -> None:
    shout: Callable[[bytes], bytes] = lambda text: b'"%b!"' % text.upper()  # noqa: E731
    assert RowEncoder([Column("a", TEXT, -1, "text", shout)]).encode((b"x",)) == b'{"a":"X!"}'


@pytest.mark.parametrize(
    ("line", "row"),
    [
        (b"1\tx\n", (b"1", b"x")),
        (b"1\tx", (b"1", b"x")),
        (b"\t\n", (b"", b"")),
        (rb"\N	\\N	\\\\N", (None, rb"\N", rb"\\N")),
        (rb"\b\f\n\r\t\v\\	\\x00	a", (b"\b\f\n\r\t\v\\", rb"\x00", b"a")),
        (b"\n", (b"",)),
    ],
)
def test_a_line_of_copy_is_split_into_a_row(line: bytes, row: Row) -> None:
    assert parse_copy_line(line) == row


def test_session_options_carry_every_setting_and_need_no_quoting() -> None:
    options = session_options()
    assert dict(re.findall(r"-c (\w+)=(\S+)", options)) == dict(SESSION_SETTINGS)
    assert "\\" not in options
