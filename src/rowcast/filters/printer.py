"""Prints expressions as SQL with every constant inlined, for places that take no parameters, such as COPY (SELECT …).

The one rule of this room: whatever a constant holds, it stays one literal. Quotes are doubled, and a literal with a
backslash is written E'…', which reads the same whatever standard_conforming_strings is.

The text of a bound expression is canonical too: it serves as the filter's key.
"""

from __future__ import annotations

from typing import Final

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
    Or,
    Term,
    Truth,
)

_TRUTHS: Final[dict[bool | None, str]] = {True: "TRUE", False: "FALSE", None: "NULL"}
_BOOLEANS: Final[dict[str, str]] = {"t": "TRUE", "f": "FALSE"}


def to_sql(expression: Expression) -> str:
    """The expression as the text of a WHERE clause."""
    match expression:
        case Truth(value):
            return _TRUTHS[value]
        case Comparison(term, operator, constant):
            return f"{term_to_sql(term)} {operator} {constant_to_sql(constant)}"
        case In(term, constants):
            return f"{term_to_sql(term)} IN ({', '.join(map(constant_to_sql, constants))})"
        case IsNull(term):
            return f"{term_to_sql(term)} IS NULL"
        case Like(term, pattern, ignore_case):
            return f"{term_to_sql(term)} {'ILIKE' if ignore_case else 'LIKE'} {constant_to_sql(pattern)}"
        case Match(term, pattern, ignore_case):
            return f"{term_to_sql(term)} {'~*' if ignore_case else '~'} {constant_to_sql(pattern)}"
        case Contains(term, constant):
            return f"{term_to_sql(term)} @> {constant_to_sql(constant)}"
        case Is(operand, truth):
            return f"({to_sql(operand)}) IS {'UNKNOWN' if truth is None else _TRUTHS[truth]}"
        case Not(operand):
            return f"NOT ({to_sql(operand)})"
        case And(operands):
            return " AND ".join(map(_operand_to_sql, operands)) or "TRUE"
        case _:
            return " OR ".join(map(_operand_to_sql, expression.operands)) or "FALSE"


def _operand_to_sql(expression: Expression) -> str:
    text = to_sql(expression)
    return f"({text})" if isinstance(expression, And | Or) else text


def term_to_sql(term: Term) -> str:
    """A column's quoted name with its path."""
    parts = ['"{}"'.format(term.column.replace('"', '""'))]
    last = len(term.path) - 1
    for index, step in enumerate(term.path):
        parts.append("->>" if term.as_text and index == last else "->")
        parts.append(str(step) if isinstance(step, int) else quote(step))
    return " ".join(parts)


def constant_to_sql(constant: Constant) -> str:
    """A constant that is not NULL as a literal, with a cast where its type is not left to what it stands beside."""
    match constant.kind:
        case "string":
            return quote(constant.literal)
        case "number":
            return constant.literal
        case "boolean":
            return _BOOLEANS[constant.literal]
        case kind:
            return f"{quote(constant.literal)}::{kind}"


def quote(text: str) -> str:
    """Text as a string literal."""
    quoted = text.replace("'", "''")
    return f"'{quoted}'" if "\\" not in text else "E'{}'".format(quoted.replace("\\", "\\\\"))
