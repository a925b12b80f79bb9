"""Values and literals of every type that filters know, chosen where types are treacherous."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st


@dataclass(frozen=True)
class Kind:
    """A column's type.

    Attributes:
        definition: Its SQL type.
        values: Texts that a column may hold.
        literals: Texts to compare with, some of which the type refuses.
        numbers: Unquoted numbers to compare with.
        family: `text`, `array`, `jsonb` or empty: which operators there are beside comparison.
    """

    definition: str
    values: tuple[str, ...]
    literals: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    family: str = ""
    random: st.SearchStrategy[str] | None = None

    def value(self) -> st.SearchStrategy[str | None]:
        texts = st.sampled_from(self.values)
        return st.none() | (texts if self.random is None else texts | self.random)

    def literal(self) -> st.SearchStrategy[str]:
        texts = st.sampled_from(self.values + self.literals)
        return texts if self.random is None else texts | self.random


_WHOLE = ("0", "1", "-1", "5", "42")
_WHOLE_LITERALS = (
    "007",
    "+5",
    " 5 ",
    "-0",
    "5.0",
    "",
    "abc",
    "1e2",
    "0x10",
    "1_000",
    "99999999999999999999",
    "٥",  # noqa: RUF001
)
_NUMBERS = (
    "5",
    "-1",
    "5.0",
    "5.5",
    "1e2",
    "0.1",
    "-0.0",
    ".5",
    "5.",
    "3000000000",
    "99999999999999999999",
    "1e-3",
)
_FLOATS = ("0", "-0", "0.1", "0.5", "1", "1.5", "-1.5", "1e15", "123456.7", "NaN", "Infinity", "-Infinity")
_FLOAT_LITERALS = (
    "nan",
    " inf ",
    "+Infinity",
    "1e400",
    "1e-400",
    "0x1p3",
    "",
    "1,5",
    "0.10",
    "1e5",
    ".5",
    "5.",
)
_TEXTS = (
    "", " ", "a", "A", "b", "B", "ab", "aB", "a b", "a_b", "a%b", "a\\b", "é", "É", "e\u0301", "ß", "ẞ", "ss", "İ", "ı", "i",  # noqa: RUF001
    "I", "K", "k", "K", "Å", "å", "Å", "Ω", "ω", "Ω", "Σ", "σ", "ς", "ΟΔΟΣ", "日本", "\U0001f600", "Zebra", "zebra", "10",  # noqa: RUF001
    "9", "null", "NULL", "true", "it's", '"q"', "a,b", "{a}", "(x)", "tab\there", "line\nbreak", "a ", "-", "*", "\x7f",
)  # fmt: skip
_DATES = (
    "2024-02-29", "2024-01-01", "1999-12-31", "0001-01-01", "9999-12-31", "10000-01-01", "294276-12-31",
    "0001-12-31 BC", "0044-03-15 BC", "4713-01-01 BC", "infinity", "-infinity", "1970-01-01",
)  # fmt: skip
_DATE_LITERALS = (
    " 2024-01-01 ", "2023-02-29", "1900-02-29", "0005-02-29 BC", "0000-01-01", "2024-13-01", "2024-1-1", "20240101",
    "Jan 1 2024", "today", "epoch", "Infinity", "5874897-12-31", "5874898-01-01", "4714-01-01 BC", "02024-01-01", "",
)  # fmt: skip
_TIMES_OF_DAY = ("00:00:00", "12:34:56", "12:34:56.5", "23:59:59.999999", "12:34:56.000001")
_TIMESTAMPS = (
    *(f"{day} {time}" for day in ("2024-01-01", "1999-12-31") for time in _TIMES_OF_DAY),
    "10000-01-01 00:00:00", "0044-03-15 12:00:00 BC", "0001-12-31 23:59:59.5 BC", "infinity", "-infinity",
)  # fmt: skip
_TIMESTAMP_LITERALS = (
    "2024-01-01", "2024-01-01T12:34:56", "2024-01-01 12:34", "2024-01-01 24:00:00", "2024-01-01 12:34:60",
    "2024-01-01 12:34:56.1234567", "2024-01-01 12:34:56.500", "0044-03-15 BC", "2024-01-01 12:34:56+02", "now", "",
    "294276-12-31 23:59:59", "294277-01-01", "2024-01-01t12:34:56", "2024-01-01 2:34:56", "2024-02-30",
)  # fmt: skip
_TIMESTAMPTZ_LITERALS = (
    "2024-01-01T12:34:56Z", "2024-01-01 14:34:56+02", "2024-01-01 14:34:56 +02:00", "2024-01-01 00:00:00.5+0530",
    "2023-12-31 23:00:00-01:00", "2024-01-01 12:34:56-16", "9999-12-31 23:00:00-05", "0001-01-01 00:00:00+01",
    "10000-01-01 00:00:00+01", "0044-03-15 12:00:00+00 BC", "0044-03-15 12:00:00+01 BC", "2024-01-01 12:00:00 UTC",
    "0099-01-01 12:34:56.25+01", "2024-01-01+02",
)  # fmt: skip
_UUIDS = (
    "0b9c7a52-5b0e-4b9e-9a53-0b6e5a3b1c11",
    "00000000-0000-0000-0000-000000000000",
    "ffffffff-ffff-ffff-ffff-ffffffffffff",
)
_UUID_LITERALS = (
    "0B9C7A52-5B0E-4B9E-9A53-0B6E5A3B1C11", "{0b9c7a52-5b0e-4b9e-9a53-0b6e5a3b1c11}", "0b9c7a525b0e4b9e9a530b6e5a3b1c11",
    "{0b9c7a52-5b0e-4b9e-9a53-0b6e5a3b1c11", "0b9c7a52", " 0b9c7a52-5b0e-4b9e-9a53-0b6e5a3b1c11", "",
    "0b9c7a52-5b0e4b9e-9a53-0b6e5a3b1c11",
)  # fmt: skip
_JSON = (
    "null", "true", "false", "0", "1", "1.0", "1.50", "-2", "12345678901234567890", '""', '"a"', '"1"', '"b\\"c"', "[]",
    "{}", "[1]", "[1.0, 2]", '["a", "b", null]', '[["a"], {"a": 1}]', '{"a": 1}', '{"a": 1.0, "b": [1, 2, {"c": null}]}',
    '{"b": 2, "a": 1}', '{"a": "x", "kind": "k"}', '{"a": null}', '{"a": {"b": true, "": "\\u00e9\\n"}}', '{"a": [1, 1]}',
    '"\\u0001\\u007f/"', '{"aa": 1, "b": 2}', '{"a": false}',
)  # fmt: skip
_JSON_LITERALS = (
    "", "{", "{'a': 1}", "NaN", "01", '{"a": 1, "a": 2}', "1e2", "1E-2", "1e99999", '"\\u0000"', '"\\ud800"',
    '"\\ud83d\\ude00"', " 1 ", "[1,2", "-0", "[[]]", "tru", "[1e0, 2]",
)  # fmt: skip
_ARRAY_LITERALS = (
    "", "{", "}", "{}", " { } ", "{{1},{2}}", "{,}", "{1,}", "{ 1 , 2 }", "[0:1]={1,2}", '{"1"}', "{null}", '{"null"}', "{1}",
    '{"a\\"b"}', "{a b}", "{a\\b}", "{1,2}x", '{"a"b}',
)  # fmt: skip

KINDS: dict[str, Kind] = {
    "int2": Kind("smallint", (*_WHOLE, "32767", "-32768"), (*_WHOLE_LITERALS, "32768"), _NUMBERS),
    "int4": Kind(
        "integer", (*_WHOLE, "2147483647", "-2147483648"), (*_WHOLE_LITERALS, "2147483648"), _NUMBERS,
        random=st.integers(-(2**31), 2**31 - 1).map(str),
    ),
    "int8": Kind(
        "bigint", (*_WHOLE, "9223372036854775807", "-9223372036854775808"), (*_WHOLE_LITERALS, "9223372036854775808"),
        _NUMBERS, random=st.integers(-(2**63), 2**63 - 1).map(str),
    ),
    "oid": Kind("oid", ("0", "1", "4294967295"), ("-1", "4294967296", "5"), ("5", "0", "5.5")),
    "numeric": Kind(
        "numeric", (*_WHOLE, "0.00", "1.0", "1.50", "-1.5", "0.1", "100", "1e20", "123456789012345678901234567890.5",
        "NaN", "Infinity", "-Infinity"), ("nan", " inf", "1e2", "1.5000", "1.", ".5", "1e1001", "1e-1001", "0e-400", ""),
        _NUMBERS, random=st.decimals(-(10**9), 10**9, places=3).map(str),
    ),
    "float4": Kind(
        "real", (*_FLOATS, "16777216", "3.4028235e38", "1e-45", "1.1754944e-38"),
        (*_FLOAT_LITERALS, "16777217", "3.5e38", "4e-46", "1e-40", "33554434", "3.40282356e38",
         "0.50000002980232238769531250000000000001", "0.5000000298023223876953125", "7.006492321624085e-46",
         "7.0064923216240854e-46", "2.1019476964872256e-45"),
        _NUMBERS, random=st.floats(width=32).map(str),
    ),
    "float8": Kind(
        "double precision", (*_FLOATS, "1e300", "5e-324", "9007199254740993"), (*_FLOAT_LITERALS, "9007199254740992"),
        _NUMBERS, random=st.floats().map(str),
    ),
    "bool": Kind("boolean", ("t", "f"), ("true", "FALSE", " on ", "off", "yes", "n", "1", "0", "2", "", "tru")),
    "text": Kind("text", _TEXTS, family="text", random=st.text("aAbBéİKk_%\\ ", max_size=5)),
    "varchar": Kind("varchar(20)", _TEXTS, family="text"),
    "bpchar": Kind("char(5)", ("", "a", "a ", "ab", "A", "é", "x_y"), (" a", "a    b"), family="text"),
    "name": Kind("name", ("", "a", "A", "a_b"), ("x" * 63, "x" * 64), family="text"),
    "label": Kind("label", ("", "a", "A", "b"), family="text"),
    "positive": Kind("positive", ("1", "5"), ("0", "-5", "x"), ("5", "0")),
    "mood": Kind("mood", ("sad", "Mid", "happy", "a b"), ("mid", "", "sad ")),
    "date": Kind("date", _DATES, _DATE_LITERALS, random=st.dates().map(str)),
    "time": Kind("time", (*_TIMES_OF_DAY, "24:00:00"), ("12:34", "12:34:56.50", "25:00", "", "12:34:56+01", "noon")),
    "timestamp": Kind("timestamp", _TIMESTAMPS, _TIMESTAMP_LITERALS, random=st.datetimes().map(str)),
    "timestamptz": Kind(
        "timestamptz", _TIMESTAMPS, (*_TIMESTAMP_LITERALS, *_TIMESTAMPTZ_LITERALS),
        random=st.datetimes().map(lambda value: f"{value}Z"),
    ),
    "uuid": Kind("uuid", _UUIDS, _UUID_LITERALS, random=st.uuids().map(str)),
    "bytea": Kind("bytea", ("\\x", "\\x00", "\\x00ff", "\\xff"), ("\\x0", "\\xFF", "abc", "\\xf f")),
    "jsonb": Kind("jsonb", _JSON, _JSON_LITERALS, family="jsonb"),
    "int4[]": Kind(
        "integer[]", ("{}", "{1}", "{1,2}", "{2,1}", "{1,NULL}", "{{1,2},{3,4}}", "[0:1]={1,2}"), _ARRAY_LITERALS,
        family="array",
    ),
    "text[]": Kind(
        "text[]", ("{}", "{a}", "{a,b}", '{"a b","",NULL}', '{"a\\"b","\\\\"}', '{"NULL","{}","a,b"}', "{{a,b},{c,d}}"),
        (*_ARRAY_LITERALS, '{"a b"}', '{""}'), family="array",
    ),
    "numeric[]": Kind("numeric[]", ("{}", "{1.0}", "{1,2.50}", "{NaN,NULL}"), ("{1}", "{1.00}", "{NaN}", "{x}"), family="array"),
    "float8[]": Kind("float8[]", ("{}", "{0}", "{-0}", "{NaN,1}", "{0.1,NULL}"), ("{0.0}", "{nan}"), family="array"),
    "mood[]": Kind("mood[]", ("{}", "{sad}", '{Mid,"a b"}'), ("{mid}", '{"a b"}'), family="array"),
    "timestamptz[]": Kind(
        "timestamptz[]", ("{}", '{"2024-01-01 00:00:00+00"}'), ('{"2024-01-01T01:00:00+01:00"}', "{2024-01-01}"),
        family="array",
    ),
    "bool[]": Kind("bool[]", ("{}", "{t,f}", "{t}"), ("{true}", "{on,NULL}"), family="array"),
}  # fmt: skip
