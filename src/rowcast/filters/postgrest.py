"""Parses the PostgREST form: `org_id=eq.5&status=in.(open,held)&or=(due_on.lt.2026-01-01,due_on.is.null)`. No I/O.

The one rule of this room: text that parses here means what it means in the query string of a PostgREST request, but
for `+`, which stays a plus sign. So percent sequences are decoded (`%26` is an ampersand within a value, `%25` a
percent sign), `*` is the wildcard of like, a value on its own is taken to its end as it is, and quotes are for values
in lists and in `and(…)`, `or(…)`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final, TypeVar
from urllib.parse import unquote

from rowcast.errors import FilterError
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
)
from rowcast.filters.limits import Budget, check_text, excerpt

_Item = TypeVar("_Item")

_COMPARISONS: Final[dict[str, Operator]] = {
    "eq": "=",
    "neq": "<>",
    "gt": ">",
    "gte": ">=",
    "lt": "<",
    "lte": "<=",
}
_IS: Final[dict[str, Callable[[Term], Expression]]] = {
    "null": IsNull,
    "not_null": lambda term: Not(IsNull(term)),
    "true": lambda term: Is(_boolean(term), True),
    "false": lambda term: Is(_boolean(term), False),
    "unknown": lambda term: Is(_boolean(term), None),
}
_ON_VALUE: Final[dict[str, Callable[[Term, str], Expression]]] = {
    "like": lambda term, value: Like(term, Constant(value.replace("*", "%"))),
    "ilike": lambda term, value: Like(term, Constant(value.replace("*", "%")), ignore_case=True),
    "match": lambda term, value: Match(term, Constant(value)),
    "imatch": lambda term, value: Match(term, Constant(value), ignore_case=True),
    "cs": lambda term, value: Contains(term, Constant(value)),
    "isdistinct": lambda term, value: Not(Is(Comparison(term, "=", Constant(value)), True)),
}
_OPERATORS: Final = ", ".join([*_COMPARISONS, "in", "is", *_ON_VALUE])
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ARROW: Final = re.compile(r"(->>?)")
_LOGIC: Final = re.compile(r"(not\.)?(and|or)(?=\()")
_OPERATOR: Final = re.compile(r"([a-z]+)\.")
_FIELD: Final = re.compile(rf'(?:{_QUOTED.pattern})?[^.,()"]+|{_QUOTED.pattern}', re.DOTALL)
_INDEX: Final = re.compile(r"-?[0-9]{1,9}")


def parse_postgrest(text: str) -> Expression:
    """Parse a filter in PostgREST form; an empty one is true everywhere.

    Raises:
        FilterError: It is not of this form, or is too large.
    """
    budget = Budget(text)
    return And(tuple(_parse_parameter(part, budget) for part in text.split("&") if part))


def _parse_parameter(part: str, budget: Budget) -> Expression:
    key, equals, value = part.partition("=")
    key, value = _decode(key), _decode(value)
    if not equals:
        raise FilterError(f"{excerpt(part)} is not a filter: write column=operator.value, such as id=eq.5")
    if key in {"and", "or", "not.and", "not.or"}:
        return _Reader(key + value, budget).parse_tree()
    return _Reader(value, budget).parse_condition(_term(key))


def _decode(text: str) -> str:
    try:
        decoded = unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise FilterError(
            f"{excerpt(text)} does not decode to UTF-8: write %25 for a percent sign, and * for the wildcard of like"
        ) from None
    check_text(decoded)
    return decoded


def _boolean(term: Term) -> Expression:
    return Comparison(term, "=", Constant("t", "boolean"))


def _term(field: str) -> Term:
    """`data->items->0->>name`; a number is an index into an array, and the column may be quoted."""
    quoted = _QUOTED.match(field)
    column, *rest = _ARROW.split(field[quoted.end() :] if quoted else field)
    arrows, keys = rest[::2], rest[1::2]
    if bool(quoted) == bool(column) or "" in keys or "->>" in arrows[:-1]:
        raise FilterError(f"{excerpt(field)} is no column: write column, column->key or column->key->>key")
    path = tuple(int(key) if _INDEX.fullmatch(key) else key for key in keys)
    return Term(_unescape(quoted[1]) if quoted else column, path, as_text=arrows[-1:] == ["->>"])


def _unescape(quoted: str) -> str:
    return re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL)


class _Reader:
    """A cursor over one parameter's decoded text."""

    def __init__(self, text: str, budget: Budget) -> None:
        self._text = text
        self._position = 0
        self._budget = budget

    def parse_condition(self, term: Term) -> Expression:
        """`operator.value` up to the end, which belongs to the value."""
        expression = self._condition(term, self._rest)
        self._expect_end()
        return expression

    def parse_tree(self) -> Expression:
        """`and(…)` or `or(…)`."""
        expression = self._element()
        self._expect_end()
        return expression

    def _expect_end(self) -> None:
        if self._position < len(self._text):
            raise self._error("the end")

    def _error(self, expected: str) -> FilterError:
        rest = self._text[self._position :]
        found = f"has {excerpt(rest)} where" if rest else "ends where"
        return FilterError(f"{excerpt(self._text)} {found} {expected} was expected")

    def _accept(self, text: str) -> bool:
        found = self._text.startswith(text, self._position)
        self._position += len(text) * found
        return found

    def _expect(self, text: str) -> None:
        if not self._accept(text):
            raise self._error(text)

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self._text, self._position)
        if match is not None:
            self._position = match.end()
        return match

    def _element(self) -> Expression:
        logic = self._match(_LOGIC)
        if logic is None:
            term = self._field()
            self._expect(".")
            return self._condition(term, self._value)
        with self._budget.nested():
            operands = tuple(self._list(self._element))
        junction: Expression = And(operands) if logic[2] == "and" else Or(operands)
        return Not(junction) if logic[1] else junction

    def _list(self, item: Callable[[], _Item]) -> Iterator[_Item]:
        self._expect("(")
        yield item()
        while self._accept(","):
            yield item()
        self._expect(")")

    def _field(self) -> Term:
        field = self._match(_FIELD)
        if field is None:
            raise self._error("a column")
        return _term(field[0])

    def _condition(self, term: Term, value: Callable[[], str]) -> Expression:
        self._budget.condition()
        if self._accept("not."):
            return Not(self._operation(term, value))
        return self._operation(term, value)

    def _operation(self, term: Term, value: Callable[[], str]) -> Expression:
        operator = _OPERATOR.match(self._text, self._position)
        name = operator[1] if operator else ""
        if operator is None or not (name in _COMPARISONS or name in _ON_VALUE or name in {"in", "is"}):
            raise self._error(f"an operator with a dot (one of {_OPERATORS})")
        self._position = operator.end()
        if name == "in":
            return In(term, () if self._accept("()") else tuple(map(Constant, self._list(self._item))))
        start = self._position
        text = value()
        self._budget.constant()
        if name == "is":
            condition = _IS.get(text.lower())
            if condition is None:
                self._position = start
                raise self._error(" or ".join(_IS))
            return condition(term)
        if name in _COMPARISONS:
            return Comparison(term, _COMPARISONS[name], Constant(text))
        return _ON_VALUE[name](term, text)

    def _item(self) -> str:
        self._budget.constant()
        return self._value()

    def _rest(self) -> str:
        start, self._position = self._position, len(self._text)
        return self._text[start:]

    def _value(self) -> str:
        """A value that ends at a comma or parenthesis, unless it is quoted or in braces."""
        quoted = self._match(_QUOTED)
        if quoted:
            return _unescape(quoted[1])
        if self._text.startswith("{", self._position):
            return self._braces()
        start = self._position
        while self._position < len(self._text) and self._text[self._position] not in ",)":
            self._position += 1
        return self._text[start : self._position]

    def _braces(self) -> str:
        start, depth = self._position, 0
        while self._position < len(self._text):
            character = self._text[self._position]
            if character == '"':
                if not self._match(_QUOTED):
                    raise self._error('a text with its closing "')
                continue
            depth += (character in "{[") - (character in "}]")
            self._position += 1
            if depth == 0:
                return self._text[start : self._position]
        raise self._error("a closing }")
