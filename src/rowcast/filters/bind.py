"""Binds an expression to a table: checks every column, operator and value, and brings it into canonical form. No I/O.

The one rule of this room: a bound filter gives what PostgreSQL would give. Constants get the type that PostgreSQL
would give them; what cannot be shown to be equal outside of PostgreSQL is refused with a sentence that says what can
be written instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rowcast.errors import FilterError
from rowcast.filters import arrays, jsonb, patterns
from rowcast.filters.canonical import all_of, any_of, is_truth, negate, one_of, where
from rowcast.filters.columns import column_of, type_of
from rowcast.filters.expression import (
    And,
    Comparison,
    Constant,
    Contains,
    Expression,
    In,
    Is,
    IsNull,
    Like,
    Match,
    Not,
    Operator,
    Or,
    Term,
    Truth,
)
from rowcast.filters.limits import excerpt
from rowcast.filters.printer import constant_to_sql, term_to_sql
from rowcast.filters.regular import regular
from rowcast.filters.scalars import NUMBERS, ValueType, to_float4
from rowcast.model import Collation, Table

# Names that a cast may give a type, beside the one that the catalog has.
_TYPE_NAMES: Final = {
    "smallint": "int2",
    "int": "int4",
    "integer": "int4",
    "bigint": "int8",
    "real": "float4",
    "float": "float8",
    "double precision": "float8",
    "decimal": "numeric",
    "boolean": "bool",
    "character varying": "varchar",
    "time without time zone": "time",
    "timestamp without time zone": "timestamp",
    "timestamp with time zone": "timestamptz",
}
_EXACT: Final = frozenset({"number", "int2", "int4", "int8", "numeric"})
_ANY_NUMBER: Final = _EXACT | {"float4", "float8"}
# Casts of constants that numbers of a family are compared with exactly. PostgreSQL rounds integers to floats.
_COMPARABLE: Final = {"integer": _EXACT, "numeric": _EXACT, "float4": _ANY_NUMBER, "float8": _ANY_NUMBER}
_PLAIN_TEXT: Final = frozenset({"text", "varchar"})


def canonical(expression: Expression, table: Table) -> Expression:
    """The canonical form of an expression as a filter of the table's rows.

    Raises:
        UnknownColumnError: It names a column that the table lacks.
        FilterError: It cannot be used on this table.
    """
    return where(_bind(expression, table))


def _bind(expression: Expression, table: Table) -> Expression:
    match expression:
        case Truth():
            return expression
        case And(operands):
            return all_of([_bind(operand, table) for operand in operands])
        case Or(operands):
            return any_of([_bind(operand, table) for operand in operands])
        case Not(operand):
            return negate(_bind(operand, table))
        case Is(operand, truth):
            return is_truth(_bind(operand, table), truth)
        case IsNull(term):
            column_of(term, table)
            return expression
        case Comparison(term, operator, constant):
            return _compare(term, type_of(term, table), operator, constant)
        case In(term, constants):
            return _list(term, type_of(term, table), constants)
        case Like(term, pattern, ignore_case):
            return _like(term, type_of(term, table), pattern, ignore_case=ignore_case)
        case Match(term, pattern, ignore_case):
            return _match(term, type_of(term, table), pattern, ignore_case=ignore_case)
        case _:
            return _contains(expression.term, type_of(expression.term, table), expression.constant)


def _compare(term: Term, kind: ValueType, operator: Operator, constant: Constant) -> Expression:
    if operator not in {"=", "<>"} and kind.disorder:
        raise FilterError(f"{term_to_sql(term)} cannot be compared with {operator}: {kind.disorder}")
    bound = _constant(term, kind, constant)
    if bound is None:
        return Truth(None)
    if operator == "<>":
        return negate(Comparison(term, "=", bound))
    return Comparison(term, operator, bound)


def _list(term: Term, kind: ValueType, constants: Sequence[Constant]) -> Expression:
    # PostgreSQL gives a list one type: of number types the widest in it or the column's, but for a real it is double
    # precision only where a cast says so. Exact numbers and whatever is read as the column's type stay what they are.
    casts = {_type_name(constant) for constant in constants if constant.text is not None}
    if kind.family == "float4" and "float8" in casts and not casts <= {"float4", "float8"}:
        raise FilterError(f"the list for {term_to_sql(term)} mixes casts: cast all of its values, or none")
    bound = [_constant(term, kind, constant, listed=len(constants) > 1) for constant in constants]
    found = one_of(term, [constant for constant in bound if constant is not None])
    return any_of([found, Truth(None)]) if None in bound else found


def _like(term: Term, kind: ValueType, pattern: Constant, *, ignore_case: bool) -> Expression:
    text = _pattern(term, kind, pattern, "ILIKE" if ignore_case else "LIKE")
    if text is None:
        return Truth(None)
    try:
        like_test(text, kind.collation, ignore_case=ignore_case)
    except ValueError as error:
        raise FilterError(f"{term_to_sql(term)} with the pattern {excerpt(text)}: expected {error}") from None
    return Like(term, Constant(text), ignore_case)


def like_test(pattern: str, collation: Collation | None, *, ignore_case: bool) -> patterns.Test:
    return patterns.ilike(pattern, collation) if ignore_case else patterns.like(pattern)


def _match(term: Term, kind: ValueType, pattern: Constant, *, ignore_case: bool) -> Expression:
    text = _pattern(term, kind, pattern, "~* (imatch)" if ignore_case else "~ (match)")
    if text is None:
        return Truth(None)
    if ignore_case and (kind.collation is None or kind.collation.lower == "other"):
        raise FilterError(
            f"{term_to_sql(term)}: the cases of its collation are PostgreSQL's own; use ~ (match)"
        )
    try:
        regular(text, ignore_case=ignore_case)
    except ValueError as error:
        raise FilterError(f"{term_to_sql(term)} with the pattern {excerpt(text)}: expected {error}") from None
    return Match(term, Constant(text), ignore_case)


def _pattern(term: Term, kind: ValueType, pattern: Constant, operator: str) -> str | None:
    if kind.family != "text":
        raise FilterError(f"{operator} is for text, {term_to_sql(term)} is of type {kind.name}")
    if pattern.kind != "string" and _type_name(pattern) not in _PLAIN_TEXT:
        raise FilterError(f"{operator} needs a pattern in quotes, without a cast")
    return pattern.text


def _contains(term: Term, kind: ValueType, constant: Constant) -> Expression:
    if kind.family not in {"array", "jsonb"}:
        raise FilterError(f"@> (cs) is for arrays and jsonb, {term_to_sql(term)} is of type {kind.name}")
    bound = _constant(term, kind, constant)
    return Truth(None) if bound is None else Contains(term, bound)


def contains_test(kind: ValueType, constant: Constant) -> patterns.Test:
    wanted = constant.literal.encode()
    return jsonb.contains(wanted) if kind.element is None else arrays.contains(kind.element, wanted)


def _constant(term: Term, kind: ValueType, constant: Constant, *, listed: bool = False) -> Constant | None:
    """A constant as PostgreSQL would type it beside the term; None for NULL.

    In its canonical form it is a `string` where it has the term's own type, else cast.
    """
    if constant.text is None:
        return None
    cast = _type_name(constant)
    try:
        match kind.family:
            case "integer" | "numeric" | "float8" | "float4" if cast in _COMPARABLE[kind.family]:
                # The cast's own rules first: '99999'::smallint is an error, whatever it is compared with.
                text = constant.text if cast == "number" else NUMBERS[cast].read(constant.text)
                return _number(kind, text, cast, listed=listed)
            case "boolean" if cast in {"string", "boolean", "bool"}:
                return Constant(kind.read(constant.text), "boolean")
            case "text" if cast in _PLAIN_TEXT and kind.name in _PLAIN_TEXT:
                return Constant(constant.text)
            case _ if cast in {"string", kind.name}:
                text = kind.read(constant.text)
                return Constant(text, "float4" if kind.family == "float4" else "string")
            case _:
                pass
    except ValueError as error:
        raise FilterError(
            f"{excerpt(constant.text)} is no value for {term_to_sql(term)} of type {kind.name}: expected {error}"
        ) from None
    shown = constant_to_sql(Constant(excerpt(constant.text)[1:-1], constant.kind))
    raise FilterError(
        f"{term_to_sql(term)} is of type {kind.name} and cannot be compared with {shown}: "
        "write the value in quotes, without a cast"
    )


def _type_name(constant: Constant) -> str:
    element = constant.kind.removesuffix("[]")
    return _TYPE_NAMES.get(element, element) + constant.kind[len(element) :]


def _number(kind: ValueType, text: str, cast: str, *, listed: bool) -> Constant:
    """A number beside a term of another number type."""
    match kind.family:
        case "integer" if kind.name != "oid":
            whole = NUMBERS["numeric"].read(text)
            for fitting, name in ((kind, "string"), (NUMBERS["int8"], "int8")):
                try:
                    return Constant(fitting.read(whole), name)
                except ValueError:
                    continue
            return Constant(whole, "numeric")
        case "float4" if cast != "float4" and (cast == "float8" or not listed):
            # PostgreSQL compares both as float8: of 0.1, no float4 is equal to it.
            wide = NUMBERS["float8"].read(text)
            return Constant(wide, "float8") if _is_wide(wide) else Constant(kind.read(wide), "float4")
        case "float4":
            return Constant(kind.read(text), "float4")
        case "float8" if cast == "float4" and text != "NaN":
            return Constant(kind.read(str(_float4_value(text))))
        case _:
            return Constant(kind.read(text))


def _is_wide(text: str) -> bool:
    """Whether a float8 is no float4."""
    try:
        return text != "NaN" and _float4_value(text) != float(text)
    except OverflowError:
        return True


def _float4_value(text: str) -> float:
    return to_float4(text.encode())
