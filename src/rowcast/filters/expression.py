"""The expression tree that both filter languages are parsed into. Immutable; equal trees are equal objects.

A tree comes in two states of the same types. Parsers make it as the text has it. `bind()` checks it against a table
and brings it into canonical form (see `canonical`), in which equal filters are equal trees: then every constant is
canonical text of the type that it is compared as.

Truth is three-valued, as in SQL: NULL compared with anything is neither true nor false.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, cast

Operator: TypeAlias = Literal["=", "<>", "<", "<=", ">", ">="]
OPPOSITE: Final[dict[Operator, Operator]] = {"=": "<>", "<>": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}


class Unknowable(Exception):  # noqa: N818 - no error: the answer is that nobody knows
    """A value that cannot be compared here: an enum label added a moment ago, JSON nested too deep."""


@dataclass(frozen=True, slots=True)
class Term:
    """A column, or a place within a jsonb column.

    Attributes:
        path: Keys of objects (text) and places in arrays (integers), outermost first.
        as_text: Whether the path ends in `->>`, which gives text, rather than in `->`, which gives jsonb.
    """

    column: str
    path: tuple[str | int, ...] = ()
    as_text: bool = False


@dataclass(frozen=True, slots=True)
class Constant:
    """A literal or a parameter.

    Attributes:
        text: Its text as PostgreSQL would read it; `t` and `f` for booleans; None for NULL.
        kind: `string` takes the type of what it is compared with, as PostgreSQL's quoted literals and untyped
            parameters do; `number` and `boolean` are literals without quotes; anything else is the name of the type
            that it was cast to.
    """

    text: str | None
    kind: str = "string"

    @property
    def literal(self) -> str:
        """The text of a constant that is not NULL, as none is in a bound leaf."""
        return cast("str", self.text)


@dataclass(frozen=True, slots=True)
class Truth:
    """TRUE, FALSE or NULL as a condition."""

    value: bool | None


@dataclass(frozen=True, slots=True)
class Comparison:
    term: Term
    operator: Operator
    constant: Constant


@dataclass(frozen=True, slots=True)
class In:
    """Whether the term equals one of the constants."""

    term: Term
    constants: tuple[Constant, ...]


@dataclass(frozen=True, slots=True)
class IsNull:
    term: Term


@dataclass(frozen=True, slots=True)
class Like:
    """LIKE, or ILIKE with `ignore_case`."""

    term: Term
    pattern: Constant
    ignore_case: bool = False


@dataclass(frozen=True, slots=True)
class Match:
    """A regular expression: `~`, or `~*` with `ignore_case`."""

    term: Term
    pattern: Constant
    ignore_case: bool = False


@dataclass(frozen=True, slots=True)
class Contains:
    """`@>` of arrays and jsonb."""

    term: Term
    constant: Constant


@dataclass(frozen=True, slots=True)
class Is:
    """IS TRUE, IS FALSE or (None) IS UNKNOWN."""

    operand: Expression
    truth: bool | None


@dataclass(frozen=True, slots=True)
class Not:
    operand: Expression


@dataclass(frozen=True, slots=True)
class And:
    operands: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Or:
    operands: tuple[Expression, ...]


Leaf: TypeAlias = Comparison | In | Like | Match | Contains  # NULL exactly where the term is
Expression: TypeAlias = Leaf | IsNull | Truth | Is | Not | And | Or


def conjunction(*expressions: Expression) -> Expression:
    """A filter that is true where all of them are; without any, everywhere."""
    return And(expressions)


def equality(column: str, value: str) -> Expression:
    """`column = value`, the value being read as the column's type when the filter is bound."""
    return Comparison(Term(column), "=", Constant(value))
