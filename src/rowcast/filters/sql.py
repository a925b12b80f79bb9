"""Parses the SQL subset: what can stand in WHERE, over the columns of one table. No I/O.

    org_id = $1 AND (status IN ('open', 'held') OR due_on < '2026-01-01') AND tags @> '{red}' AND data ->> 'kind' = 'a'

The one rule of this room: text that parses here means what it means to PostgreSQL. Words and operators are cut as
PostgreSQL's lexer cuts them, precedence is PostgreSQL's, and everything beyond the subset is an error that names the
place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final, cast

from rowcast.errors import FilterError
from rowcast.filters.arrays import read_array, write_array
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
from rowcast.filters.lexer import Token, fold, tokenize, unescape
from rowcast.filters.limits import Budget, check_text, excerpt

# Words that PostgreSQL does not take for a column's name. `user` is even a value there: the session's.
_RESERVED: Final = frozenset(
    """all analyse analyze and any array as asc asymmetric authorization binary both case cast check collate collation
    column concurrently constraint create cross current_catalog current_date current_role current_schema current_time
    current_timestamp current_user default deferrable desc distinct do else end except false fetch for foreign freeze
    from full grant group having ilike in initially inner intersect into is isnull join lateral leading left like
    limit localtime localtimestamp natural not notnull null offset on only or order outer overlaps placing primary
    references returning right select session_user similar some symmetric system_user table tablesample then to
    trailing true union unique user using variadic verbose when where window with""".split()  # noqa: SIM905
)
_COMPARISONS: Final[dict[str, Operator]] = {
    **{sign: sign for sign in cast("tuple[Operator, ...]", ("=", "<>", "<", "<=", ">", ">="))},
    "!=": "<>",
}
_MIRRORED: Final[dict[Operator, Operator]] = {
    "=": "=",
    "<>": "<>",
    "<": ">",
    "<=": ">=",
    ">": "<",
    ">=": "<=",
}
_MATCHES: Final = {"~": (False, False), "~*": (True, False), "!~": (False, True), "!~*": (True, True)}
# Types of more than one word: how they go on.
_TYPE_WORDS: Final = frozenset({"precision", "varying", "with", "without", "time", "zone"})
_LONG_TYPES: Final = frozenset({"double", "character", "time", "timestamp"})


def parse_sql(text: str, parameters: Sequence[object] = ()) -> Expression:
    """Parse a condition.

    Args:
        text: What would stand after WHERE.
        parameters: Values of `$1`, `$2`, …: text, numbers, booleans, None and lists of these for arrays. Text and
            numbers are read as the type of what they are compared with.

    Raises:
        FilterError: It is not a condition of the subset, or is too large.
    """
    return _Parser(text, parameters).parse()


class _Parser:
    def __init__(self, text: str, parameters: Sequence[object]) -> None:
        self._budget = Budget(text)
        self._tokens = list(tokenize(text))
        self._index = 0
        self._parameters = [_parameter(value) for value in parameters]
        self._used: set[int] = set()

    def parse(self) -> Expression:
        expression = self._or()
        if self._token.kind != "end":
            raise self._error("AND, OR or the end")
        if len(self._used) < len(self._parameters):
            unused = min(set(range(len(self._parameters))) - self._used) + 1
            raise FilterError(f"a value is given for ${unused}, but the filter does not use it: leave it out")
        return expression

    @property
    def _token(self) -> Token:
        return self._tokens[self._index]

    def _error(self, expected: str) -> FilterError:
        token = self._token
        found = excerpt(token.text) if token.text else "its end"
        return FilterError(
            f"the filter has {found} at character {token.position + 1}, where {expected} was expected"
        )

    def _take(self) -> Token:
        token = self._token
        self._index += 1
        return token

    def _is_word(self, *words: str) -> bool:
        """Whether the next tokens are these words, unquoted."""
        return all(
            token.kind == "word" and fold(token.text) == word
            for token, word in zip(self._tokens[self._index :], words, strict=False)
        ) and self._index + len(words) < len(self._tokens)

    def _accept_word(self, *words: str) -> bool:
        found = self._is_word(*words)
        self._index += len(words) * found
        return found

    def _accept_mark(self, mark: str) -> bool:
        found = self._token.kind == "mark" and self._token.text == mark
        self._index += found
        return found

    def _expect_mark(self, mark: str) -> None:
        if not self._accept_mark(mark):
            raise self._error(mark)

    def _expect_word(self, word: str) -> None:
        if not self._accept_word(word):
            raise self._error(word.upper())

    # Conditions, from the loosest to the tightest: OR, AND, NOT, IS, comparison, other operators.

    def _or(self) -> Expression:
        return self._joined(self._and, "or", Or)

    def _and(self) -> Expression:
        return self._joined(self._not, "and", And)

    def _joined(self, operand: Callable[[], Expression], word: str, kind: type[And | Or]) -> Expression:
        operands = [operand()]
        while self._accept_word(word):
            operands.append(operand())
        return operands[0] if len(operands) == 1 else kind(tuple(operands))

    def _not(self) -> Expression:
        if not self._accept_word("not"):
            return self._is()
        with self._budget.nested():
            return Not(self._not())

    def _is(self) -> Expression:
        if self._accept_mark("("):
            with self._budget.nested():
                condition = self._or()
            self._expect_mark(")")
        else:
            self._budget.condition()
            left = self._operand()
            if isinstance(left, Term) and self._is_word("is"):
                return self._is_of_term(left)
            condition = self._predicate(left)
        return self._is_of_condition(condition)

    def _is_of_term(self, term: Term) -> Expression:
        if self._accept_word("is", "not", "distinct", "from"):
            return self._not_distinct(term)
        if self._accept_word("is", "distinct", "from"):
            return Not(self._not_distinct(term))
        if self._accept_word("is", "not", "null"):
            return Not(IsNull(term))
        if self._accept_word("is", "null"):
            return IsNull(term)
        return self._is_of_condition(_boolean(term))

    def _not_distinct(self, term: Term) -> Expression:
        constant = self._constant()
        return IsNull(term) if constant.text is None else Is(Comparison(term, "=", constant), truth=True)

    def _is_of_condition(self, condition: Expression) -> Expression:
        if not self._accept_word("is"):
            return condition
        negated = self._accept_word("not")
        for word, truth in (("true", True), ("false", False), ("unknown", None), ("null", None)):
            if self._accept_word(word):
                return Not(Is(condition, truth)) if negated else Is(condition, truth)
        raise self._error("TRUE, FALSE, UNKNOWN or NULL")

    def _predicate(self, left: Term | Constant) -> Expression:
        token = self._token
        if token.kind == "operator" and token.text in _COMPARISONS:
            self._take()
            return self._comparison(left, _COMPARISONS[token.text])
        if isinstance(left, Constant):
            return self._truth(left)
        negated = self._accept_word("not")
        if self._accept_word("in"):
            found: Expression = In(left, self._constants("(", ")"))
        elif self._accept_word("between"):
            low = self._constant()
            self._expect_word("and")
            found = And((Comparison(left, ">=", low), Comparison(left, "<=", self._constant())))
        elif self._accept_word("like"):
            found = Like(left, self._constant())
        elif self._accept_word("ilike"):
            found = Like(left, self._constant(), ignore_case=True)
        elif negated:
            raise self._error("IN, BETWEEN, LIKE or ILIKE")
        elif token.kind == "operator":
            return self._operation(left)
        else:
            return _boolean(left)
        return Not(found) if negated else found

    def _comparison(self, left: Term | Constant, operator: Operator) -> Expression:
        if isinstance(left, Term):
            if operator == "=" and self._accept_word("any"):
                return Or(tuple(Comparison(left, "=", constant) for constant in self._any()))
            if operator == "<>" and self._accept_word("all"):
                return And(tuple(Comparison(left, "<>", constant) for constant in self._any()))
            return Comparison(left, operator, self._constant())
        right = self._operand()
        if isinstance(right, Constant):
            raise FilterError("a comparison needs a column on one side: write column = value")
        return Comparison(right, _MIRRORED[operator], left)

    def _operation(self, left: Term) -> Expression:
        operator = self._token.text
        if operator in _MATCHES:
            self._take()
            ignore_case, negated = _MATCHES[operator]
            match = Match(left, self._constant(), ignore_case)
            return Not(match) if negated else match
        if operator != "@>":
            raise self._error("one of = <> < <= > >= ~ ~* !~ !~* @> -> ->>")
        self._take()
        return Contains(left, self._array() if self._accept_word("array") else self._constant())

    def _truth(self, constant: Constant) -> Expression:
        if constant.text is None:
            return Truth(None)
        if constant.kind != "boolean":
            raise self._error("a comparison")
        return Truth(constant.text == "t")

    # Terms and constants.

    def _operand(self) -> Term | Constant:
        token = self._token
        if token.kind == "quoted":
            name = self._take().text[1:-1].replace('""', '"')
        elif token.kind != "word" or fold(token.text) in {"true", "false", "null"}:
            return self._constant("a column or a value")
        elif fold(token.text) in _RESERVED:
            raise self._error(f'a column (one of this name is written "{fold(token.text)}")')
        else:
            name = fold(self._take().text)
        if self._accept_mark("."):
            raise FilterError(f'write the column\'s name alone, without "{name}." before it')
        if self._accept_mark("("):
            raise FilterError(f'there are no functions in filters: "{name}(…)" cannot be used')
        return self._path(name)

    def _path(self, name: str) -> Term:
        path: list[str | int] = []
        as_text = False
        while self._token.kind == "operator" and self._token.text in {"->", "->>"}:
            if as_text:
                raise self._error("the end of the path, because ->> gives text,")
            as_text = self._take().text == "->>"
            step = self._constant("a key in quotes or an array index")
            if step.kind == "string" and step.text is not None:
                path.append(step.text)
            elif step.kind == "number" and re.fullmatch(r"-?[0-9]{1,9}", step.text or ""):
                path.append(int(step.text or ""))
            else:
                self._index -= 1
                raise self._error("a key in quotes or an array index")
        if self._accept_mark("::"):
            raise FilterError(f'columns cannot be cast: write "{name}" alone and cast the value')
        return Term(name, tuple(path), as_text)

    def _constant(self, expected: str = "a value") -> Constant:
        self._budget.constant()
        token = self._take()
        match token.kind:
            case "string":
                constant = Constant(token.text[1:-1].replace("''", "'"))
            case "escape":
                constant = Constant(unescape(token.text[2:-1]))
            case "number":
                constant = Constant(token.text, "number")
            case "parameter":
                constant = self._parameter(int(token.text[1:]))
            case "operator" if token.text in {"-", "+"} and self._token.kind == "number":
                constant = Constant(token.text.replace("+", "") + self._take().text, "number")
            case "word" if fold(token.text) in {"true", "false"}:
                constant = Constant(fold(token.text)[0], "boolean")
            case "word" if fold(token.text) == "null":
                constant = Constant(None)
            case _:
                self._index -= 1
                raise self._error(expected)
        while self._accept_mark("::"):
            constant = self._cast(constant, self._type())
        return constant

    def _parameter(self, number: int) -> Constant:
        if not 1 <= number <= len(self._parameters):
            raise FilterError(
                f"the filter uses ${number}, but {len(self._parameters)} values are given for parameters"
            )
        self._used.add(number - 1)
        return self._parameters[number - 1]

    def _constants(self, opening: str, closing: str) -> tuple[Constant, ...]:
        self._expect_mark(opening)
        if opening == "[" and self._accept_mark(closing):
            return ()
        constants = [self._constant()]
        while self._accept_mark(","):
            constants.append(self._constant())
        self._expect_mark(closing)
        return tuple(constants)

    def _any(self) -> tuple[Constant, ...]:
        """The elements of ANY (…) or ALL (…)."""
        self._expect_mark("(")
        if self._accept_word("array"):
            elements = self._split(self._array())
        else:
            elements = self._split(self._constant("ARRAY[…] or an array in quotes"))
            for _ in elements:
                self._budget.constant()
        self._expect_mark(")")
        return elements

    def _array(self) -> Constant:
        """`ARRAY[…]`, whose type is that of its elements: text where they are in quotes."""
        elements = self._constants("[", "]")
        kinds = {_element_kind(element) for element in elements if element.text is not None}
        if len(kinds) > 1 and not kinds <= set(_WHOLE_TYPES):
            raise FilterError("the values of an ARRAY must be all in quotes, all numbers or all of one cast")
        literal = write_array(element.text for element in elements)
        if self._accept_mark("::"):
            kind = self._type()
            if not kind.endswith("[]"):
                raise FilterError(f"an ARRAY can be cast to an array type only: write {kind}[]")
            return Constant(literal, kind)
        return Constant(literal, f"{max(kinds, default='text', key=_width)}[]")

    def _split(self, array: Constant) -> tuple[Constant, ...]:
        if array.text is None:
            return (array,)
        kind = array.kind
        if kind != "string" and not kind.endswith("[]"):
            raise FilterError("ANY needs an array: ANY (ARRAY[1, 2]) or ANY ('{1,2}')")
        try:
            elements = read_array(array.text)
        except ValueError as error:
            raise FilterError(f"{excerpt(array.text)} is no array for ANY: expected {error}") from None
        return tuple(Constant(element, kind.removesuffix("[]")) for element in elements)

    # Casts.

    def _cast(self, constant: Constant, kind: str) -> Constant:
        if constant.kind == "boolean" and kind not in {"bool", "boolean"}:
            raise FilterError(f"TRUE and FALSE cannot be cast to {kind} here")
        if constant.kind == "number" and kind not in _NUMBER_TYPES:
            raise FilterError(f"the number {constant.text} cannot be cast to {kind} here: write it in quotes")
        if constant.kind not in {"string", "boolean", "number"} and constant.kind != kind:
            raise FilterError("a value can be cast once only")
        return Constant(constant.text, kind)

    def _type(self) -> str:
        words = [self._type_word()]
        while (
            words[0] in _LONG_TYPES and self._token.kind == "word" and fold(self._token.text) in _TYPE_WORDS
        ):
            words.append(fold(self._take().text))
        name = " ".join(words)
        if self._accept_mark("."):
            name = f"{name}.{self._type_word()}"
        if self._accept_mark("("):
            raise FilterError(f"write the type without ({name}(…) would cut or round the value)")
        if name in {"char", "character"}:
            raise FilterError("char means char(1), which would cut the value: write bpchar")
        if self._accept_mark("["):
            self._expect_mark("]")
            return f"{name}[]"
        return name

    def _type_word(self) -> str:
        token = self._take()
        if token.kind == "word":
            return fold(token.text)
        if token.kind == "quoted":
            return token.text
        self._index -= 1
        raise self._error("a type")


_NUMBER_TYPES: Final = frozenset(
    """int2 int4 int8 smallint int integer bigint oid numeric decimal float4 float8 real float""".split()  # noqa: SIM905
) | {"double precision"}

_WHOLE_TYPES: Final = {"int4": 2**31, "int8": 2**63, "numeric": 0}  # with their bounds


def _element_kind(constant: Constant) -> str:
    """The type that PostgreSQL gives an element of an ARRAY."""
    match constant.kind:
        case "string":
            return "text"
        case "boolean":
            return "bool"
        case "number" if re.fullmatch(r"-?[0-9]{1,20}", constant.literal):
            value = abs(int(constant.literal))
            return next((name for name, bound in _WHOLE_TYPES.items() if value < bound), "numeric")
        case "number":
            return "numeric"
        case kind:
            return kind


def _width(kind: str) -> int:
    return list(_WHOLE_TYPES).index(kind) if kind in _WHOLE_TYPES else 0


def _boolean(term: Term) -> Expression:
    """A boolean column as a condition."""
    return Comparison(term, "=", Constant("t", "boolean"))


def _parameter(value: object) -> Constant:
    match value:
        case list() | tuple():
            elements = cast("Sequence[object]", value)
            return Constant(write_array([_scalar_parameter(element).text for element in elements]))
        case _:
            return _scalar_parameter(value)


def _scalar_parameter(value: object) -> Constant:
    match value:
        case None:
            return Constant(None)
        case bool():
            return Constant("t" if value else "f", "boolean")
        case str():
            check_text(value)
            return Constant(value)
        case int() | float():
            return Constant(repr(value))
        case _:
            raise FilterError(
                f"a parameter cannot be of type {type(value).__name__}: give text, a number, a boolean, null, or a list "
                "of these; JSON as text"
            )
