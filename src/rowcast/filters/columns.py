"""Which type a term of a filter has: the table's columns and the places within jsonb. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from operator import itemgetter
from typing import Final

from rowcast.errors import FilterError, UnknownColumnError
from rowcast.filters import jsonb, scalars
from rowcast.filters.arrays import array_type
from rowcast.filters.expression import Term
from rowcast.filters.printer import term_to_sql
from rowcast.filters.scalars import ValueType
from rowcast.model import MISSING, Column, Row, Table, Value

_JSONB_OID: Final = 3802
# Array type → type of its elements. Not bpchar[] and jsonb[], whose elements have several texts for one value.
_ARRAYS: Final = {
    1000: 16, 1001: 17, 1003: 19, 1005: 21, 1007: 23, 1009: 25, 1015: 1043, 1016: 20, 1021: 700, 1022: 701, 1028: 26,
    1115: 1114, 1182: 1082, 1183: 1083, 1185: 1184, 1231: 1700, 2951: 2950,
}  # fmt: skip
_JSON_OID: Final = 114


def column_of(term: Term, table: Table) -> int:
    """The place of a term's column in the table.

    Raises:
        UnknownColumnError: The table has no such column; the text lists those it has.
    """
    index = table.index_of(term.column)
    if index is None:
        known = ", ".join(column.name for column in table.columns)
        raise UnknownColumnError(f'{table.channel} has no column "{term.column}"; it has: {known}')
    if term.path and _oid_of(table.columns[index]) != _JSONB_OID:
        raise FilterError(
            f'-> and ->> need a column of type jsonb, "{term.column}" is of type {table.columns[index].type_name}'
        )
    return index


def type_of(term: Term, table: Table) -> ValueType:
    """The type of a term.

    Raises:
        UnknownColumnError: The table has no such column.
        FilterError: The type is none that filters can compare.
    """
    column = table.columns[column_of(term, table)]
    found = _type_of_text(column) if term.as_text else _type_of_column(column)
    if found is None:
        raise FilterError(
            f'"{term.column}" is of type {column.type_name}, which filters cannot compare; only IS NULL can be asked of '
            f"it{' (jsonb could be compared)' if _oid_of(column) == _JSON_OID else ''}"
        )
    if found.collation is not None and not found.collation.deterministic:
        raise FilterError(
            f"{term_to_sql(term)} has the non-deterministic collation {found.collation.name}, under which only "
            "PostgreSQL can compare; only IS NULL can be asked of it"
        )
    return found


def reader_of(term: Term, table: Table) -> Callable[[Row], Value]:
    """What takes a term's value out of a row."""
    get = itemgetter(column_of(term, table))
    if not term.path:
        return get
    extract = jsonb.extract(term.path, as_text=term.as_text)

    def read(row: Row) -> Value:
        value: Value = get(row)
        return value if value is None or value is MISSING else extract(value)

    return read


def _oid_of(column: Column) -> int:
    return column.traits.base_oid or column.type_oid


@lru_cache(maxsize=1024)
def _type_of_text(column: Column) -> ValueType | None:
    return scalars.text_type(scalars.TEXT_OID, column.traits.collation)


@lru_cache(maxsize=1024)
def _type_of_column(column: Column) -> ValueType | None:
    oid, traits = _oid_of(column), column.traits
    element_oid = traits.element_oid or _ARRAYS.get(oid, 0)
    if element_oid:
        element = _type_of_oid(element_oid, column)
        return None if element is None else array_type(element)
    return _type_of_oid(oid, column)


def _type_of_oid(oid: int, column: Column) -> ValueType | None:
    found = scalars.built_in(oid) or scalars.text_type(oid, column.traits.collation)
    if found is None and column.traits.enum_labels:
        return scalars.enum_type(column.type_name.removesuffix("[]"), column.traits.enum_labels)
    return found
