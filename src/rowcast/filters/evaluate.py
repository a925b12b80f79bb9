"""Compiles canonical expressions into tests of rows. No I/O.

The one rule of this room: a test answers with SQL's three truth values, None being NULL, or with MISSING where the
answer depends on a value that nobody sent or that cannot be compared here. It never takes that for false.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final, TypeAlias

from rowcast.filters.bind import contains_test, like_test
from rowcast.filters.columns import reader_of, type_of
from rowcast.filters.expression import (
    And,
    Comparison,
    Constant,
    Expression,
    In,
    Is,
    IsNull,
    Leaf,
    Like,
    Match,
    Not,
    Or,
    Truth,
    Unknowable,
)
from rowcast.filters.regular import regular
from rowcast.filters.scalars import NUMBERS, ValueType
from rowcast.model import MISSING, Missing, Row, Table, Value

Outcome: TypeAlias = bool | Missing | None
Test: TypeAlias = Callable[[Row], Outcome]

_COMPARE: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def compile_test(expression: Expression, table: Table) -> Test:
    """The test of the table's rows that a bound expression is."""
    match expression:
        case Truth(value):
            return lambda _: value
        case And(operands):
            return _junction([compile_test(operand, table) for operand in operands], decisive=False)
        case Or(operands):
            return _junction([compile_test(operand, table) for operand in operands], decisive=True)
        case Not(operand):
            return _not(compile_test(operand, table))
        case Is(operand, truth):
            return _is(compile_test(operand, table), truth)
        case IsNull(term):
            return _is_null(reader_of(term, table))
        case _:
            return _on_value(
                reader_of(expression.term, table), _leaf(expression, type_of(expression.term, table))
            )


def identity_of(constant: Constant, kind: ValueType) -> Hashable:
    """What the identity of a value is equal to exactly if the value equals the constant."""
    return _type_of_constant(constant, kind).identify(constant.literal.encode())


def _type_of_constant(constant: Constant, kind: ValueType) -> ValueType:
    return NUMBERS.get(constant.kind, kind)


def _leaf(leaf: Leaf, kind: ValueType) -> Callable[[bytes], bool]:
    match leaf:
        case Comparison(_, "=", constant):
            return _equals(identity_of(constant, kind), kind)
        case Comparison(_, "<>", constant):
            equals = _equals(identity_of(constant, kind), kind)
            return lambda value: not equals(value)
        case Comparison(_, comparison, constant):
            bound = _type_of_constant(constant, kind).order(constant.literal.encode())
            return _compares(_COMPARE[comparison], kind, bound)
        case In(_, constants):
            wanted = frozenset([identity_of(constant, kind) for constant in constants])
            identity = kind.identity
            return wanted.__contains__ if identity is None else lambda value: identity(value) in wanted
        case Like(_, pattern, ignore_case):
            return like_test(pattern.literal, kind.collation, ignore_case=ignore_case)
        case Match(_, pattern, ignore_case):
            return regular(pattern.literal, ignore_case=ignore_case)
        case _:
            return contains_test(kind, leaf.constant)


def _equals(wanted: Hashable, kind: ValueType) -> Callable[[bytes], bool]:
    identity = kind.identity
    if identity is None:
        return lambda value: value == wanted
    return lambda value: identity(value) == wanted


def _compares(compare: Callable[[Any, Any], bool], kind: ValueType, bound: object) -> Callable[[bytes], bool]:
    order = kind.order
    return lambda value: compare(order(value), bound)


def _on_value(read: Callable[[Row], Value], test: Callable[[bytes], bool]) -> Test:
    def evaluate(row: Row) -> Outcome:
        try:
            value = read(row)
            return value if value is None or value is MISSING else test(value)
        except (Unknowable, UnicodeDecodeError):  # a database in SQL_ASCII holds whatever bytes it was given
            return MISSING

    return evaluate


def _is_null(read: Callable[[Row], Value]) -> Test:
    def evaluate(row: Row) -> Outcome:
        try:
            value = read(row)
        except Unknowable:
            return MISSING
        return MISSING if value is MISSING else value is None

    return evaluate


def _not(test: Test) -> Test:
    def evaluate(row: Row) -> Outcome:
        outcome = test(row)
        return outcome if outcome is None or outcome is MISSING else not outcome

    return evaluate


def _is(test: Test, truth: bool | None) -> Test:  # noqa: FBT001 - a third truth value
    def evaluate(row: Row) -> Outcome:
        outcome = test(row)
        return MISSING if outcome is MISSING else outcome is truth

    return evaluate


def _junction(tests: Sequence[Test], *, decisive: bool) -> Test:
    """AND, which one false operand decides, or OR, which one true operand does."""

    def evaluate(row: Row) -> Outcome:
        result: Outcome = not decisive
        for test in tests:
            outcome = test(row)
            if outcome is decisive:
                return decisive
            if outcome is MISSING or (outcome is None and result is not MISSING):
                result = outcome
        return result

    return evaluate
