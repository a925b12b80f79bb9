"""Canonical form: builders that give equal trees for equal filters. No I/O.

The one rule of this room: no step changes a truth value, NULL included. So NOT is pushed down to the leaves by De
Morgan's laws, which hold in three-valued logic, while `a AND NOT a` stays as it is: it may be NULL. Only
`where()`, which is for a whole filter, takes NULL for FALSE.

The operands are bound and canonical themselves. AND and OR are flat, without duplicates, sorted by their text; equal
and unequal terms are gathered into IN lists.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from rowcast.filters.expression import (
    OPPOSITE,
    And,
    Comparison,
    Constant,
    Expression,
    In,
    Is,
    IsNull,
    Leaf,
    Not,
    Or,
    Term,
    Truth,
)
from rowcast.filters.printer import to_sql


def all_of(operands: Iterable[Expression]) -> Expression:
    """AND of canonical operands."""
    return _junction(And, operands)


def any_of(operands: Iterable[Expression]) -> Expression:
    """OR of canonical operands."""
    return _junction(Or, operands)


def one_of(term: Term, constants: Iterable[Constant]) -> Expression:
    """IN of constants that are not NULL."""
    chosen = tuple(sorted(set(constants), key=lambda constant: (constant.text, constant.kind)))
    match chosen:
        case ():
            return Truth(False)
        case (constant,):
            return Comparison(term, "=", constant)
        case _:
            return In(term, chosen)


def negate(expression: Expression) -> Expression:
    """NOT of a canonical operand."""
    match expression:
        case Truth(value):
            return Truth(None if value is None else not value)
        case And(operands):
            return any_of(map(negate, operands))
        case Or(operands):
            return all_of(map(negate, operands))
        case Not(operand):
            return operand
        case Comparison(term, "=", Constant(text, "boolean")):
            return Comparison(term, "=", Constant("f" if text == "t" else "t", "boolean"))
        case Comparison(term, operator, constant):
            return Comparison(term, OPPOSITE[operator], constant)
        case _:
            return Not(expression)


def is_truth(expression: Expression, truth: bool | None) -> Expression:  # noqa: FBT001 - a third truth value
    """IS TRUE, IS FALSE or (None) IS UNKNOWN of a canonical operand."""
    match expression:
        case Truth(value):
            return Truth(value is truth)
        case IsNull() | Is() | Not(IsNull() | Is()):  # never NULL
            if truth is None:
                return Truth(False)
            return expression if truth else negate(expression)
        case And() | Or() if truth is None:
            return Is(expression, None)
        case And(operands) if truth:
            return all_of(is_truth(operand, True) for operand in operands)
        case Or(operands) if truth:
            return any_of(is_truth(operand, True) for operand in operands)
        case _ if truth is False:
            return is_truth(negate(expression), True)
        case _ if truth is None:  # the constants of leaves are not NULL
            leaf = cast("Leaf", expression.operand if isinstance(expression, Not) else expression)
            return IsNull(leaf.term)
        case _:
            return Is(expression, True)


def where(expression: Expression) -> Expression:
    """The condition of a whole filter: rows for which it is NULL are as little in it as those for which it is false."""
    match expression:
        case Truth(value):
            return Truth(value is True)
        case And(operands):
            return all_of(map(where, operands))
        case Or(operands):
            return any_of(map(where, operands))
        case Is(operand, True):
            return where(operand)
        case _:
            return expression


def _junction(kind: type[And | Or], operands: Iterable[Expression]) -> Expression:
    neutral, decisive = Truth(kind is And), Truth(kind is Or)
    parts: dict[Expression, None] = {}
    listed: dict[Term, list[Constant]] = {}
    for operand in operands:
        for part in operand.operands if isinstance(operand, kind) else (operand,):
            # `a = 1 OR a = 2` and `a <> 1 AND a <> 2` are lists.
            match part:
                case Comparison(term, "=", constant) if kind is Or and constant.kind != "boolean":
                    listed.setdefault(term, []).append(constant)
                case Comparison(term, "<>", constant) if kind is And:
                    listed.setdefault(term, []).append(constant)
                case In(term, constants) if kind is Or:
                    listed.setdefault(term, []).extend(constants)
                case Not(In(term, constants)) if kind is And:
                    listed.setdefault(term, []).extend(constants)
                case _:
                    parts[part] = None
    for term, values in listed.items():
        equal = one_of(term, values)
        parts[equal if kind is Or else negate(equal)] = None
    if decisive in parts:
        return decisive
    parts.pop(neutral, None)
    match sorted(parts, key=to_sql):
        case []:
            return neutral
        case [part]:
            return part
        case found:
            return kind(tuple(found))
