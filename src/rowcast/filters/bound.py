"""A filter as the rest of the server knows it: bound to a table, canonical, ready to be asked. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field

from rowcast.filters.bind import canonical
from rowcast.filters.columns import column_of
from rowcast.filters.evaluate import Outcome, Test, compile_test
from rowcast.filters.expression import And, Expression, Is, Not, Or, Term, Truth
from rowcast.filters.printer import to_sql
from rowcast.model import MISSING, Row, Table


@dataclass(slots=True)
class BoundFilter:
    """A filter of one table's rows. Make it with `bind()`.

    Equal filters of one table are equal objects with equal keys.

    Attributes:
        expression: In canonical form.
    """

    expression: Expression
    table: Table = field(repr=False)
    # Most filters are found by the index and never evaluated on their own.
    _test: Test | None = field(default=None, compare=False, repr=False)

    def __hash__(self) -> int:
        return hash(self.expression)

    @property
    def sql(self) -> str:
        """The condition as text for a WHERE clause, all values inlined."""
        return to_sql(self.expression)

    @property
    def key(self) -> str:
        """Equal for equal filters of one table, and different for different ones."""
        return to_sql(self.expression)

    @property
    def columns(self) -> tuple[int, ...]:
        """Indexes of the table's columns that the filter needs, in order."""
        return tuple(sorted({column_of(term, self.table) for term in _terms(self.expression)}))

    def evaluate(self, row: Row) -> Outcome:
        """True for rows of the filter, False or None (NULL) for others, MISSING where that cannot be known."""
        if self._test is None:
            self._test = compile_test(self.expression, self.table)
        return self._test(row)

    def matches(self, row: Row) -> bool:
        """Whether the filter is true for a row.

        Raises:
            ValueError: That depends on a value that is MISSING, or cannot be compared here. See `evaluate()`.
        """
        outcome = self.evaluate(row)
        if outcome is MISSING:
            raise ValueError("the filter needs a value that is not known: ask evaluate(), which tells so")
        return outcome is True


def bind(expression: Expression, table: Table) -> BoundFilter:
    """Check an expression against a table and make it a filter of its rows.

    Raises:
        UnknownColumnError: It names a column that the table lacks; the text lists those it has.
        FilterError: It cannot be used on this table; the text says why and what to write instead.
    """
    return BoundFilter(canonical(expression, table), table)


def _terms(expression: Expression) -> list[Term]:
    match expression:
        case Truth():
            return []
        case And(operands) | Or(operands):
            return [term for operand in operands for term in _terms(operand)]
        case Not(operand) | Is(operand):
            return _terms(operand)
        case _:
            return [expression.term]
