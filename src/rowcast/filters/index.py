"""Finds the filters that a row is in, among a million of them. No I/O.

The one rule of this room: the index gives exactly the filters that evaluating each of them would give. It only spares
the work.

A filter is true only where one of its *places* is: a term and a value of it. `org_id = 5` has one, `status IN ('a',
'b')` two, and `a = 1 OR b = 2` two of different terms; of AND the operand whose places have the fewest filters so far
is chosen, which is the most selective one after some hundred filters. A row is looked up once for every term in use.
What is left of a filter beyond its place is tested on the rows found there. Filters without such a place (ranges,
patterns) are tested on every row; `linear` counts them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeAlias, TypeVar

from rowcast.errors import FilterError
from rowcast.filters.bound import BoundFilter
from rowcast.filters.canonical import all_of, any_of
from rowcast.filters.columns import reader_of, type_of
from rowcast.filters.evaluate import Test, compile_test, identity_of
from rowcast.filters.expression import And, Comparison, Expression, In, IsNull, Or, Term, Truth, Unknowable
from rowcast.model import MISSING, Row, Table

Handle = TypeVar("Handle", bound=Hashable)

# Place → what remains to be tested there.
_Places: TypeAlias = dict[tuple[Term, Hashable], Expression]

_ALWAYS = Truth(True)


@dataclass(slots=True)
class _Probe(Generic[Handle]):
    """The places of one term, by value; None is NULL.

    Attributes:
        sure: Filters that are true there. Equal filters are one shape, so there are few at one value.
        candidates: Filters of which something remains to be tested.
        size: How many entries there are.
    """

    read: Callable[[Row], Hashable]
    sure: dict[Hashable, tuple[Handle, ...]] = field(default_factory=dict[Hashable, tuple[Handle, ...]])
    candidates: dict[Hashable, dict[Handle, Test]] = field(default_factory=dict[Hashable, dict[Handle, Test]])
    size: int = 0

    def load(self, value: Hashable) -> int:
        return len(self.sure.get(value, ())) + len(self.candidates.get(value, ()))


class FilterIndex(Generic[Handle]):
    """The filters of one table, each with a handle that is given back where it is true."""

    def __init__(self) -> None:
        self._probes: dict[Term, _Probe[Handle]] = {}
        self._always: dict[Handle, None] = {}
        self._linear: dict[Handle, Test] = {}
        self._placed: dict[Handle, _Places] = {}  # where there was a choice
        self._branching = 0  # filters that more than one term leads to
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def linear(self) -> int:
        """How many filters are tested on every row, because no value of theirs can be looked up."""
        return len(self._linear)

    def add(self, bound: BoundFilter, handle: Handle) -> None:
        """Add a filter. Its handle must not be in the index already."""
        self._size += 1
        if bound.expression == _ALWAYS:
            self._always[handle] = None
            return
        places = self._choose(bound.expression, bound.table)
        if places is None:
            self._linear[handle] = compile_test(bound.expression, bound.table)
            return
        if isinstance(bound.expression, And | Or):
            self._placed[handle] = places
        self._branching += _is_branching(places)
        for (term, value), rest in places.items():
            probe = self._probes.get(term)
            if probe is None:
                probe = self._probes[term] = _Probe(_identity_reader(term, bound.table))
            probe.size += 1
            if rest == _ALWAYS:
                probe.sure[value] = (*probe.sure.get(value, ()), handle)
            else:
                probe.candidates.setdefault(value, {})[handle] = compile_test(rest, bound.table)

    def remove(self, bound: BoundFilter, handle: Handle) -> None:
        """Remove a filter that was added with this handle."""
        self._size -= 1
        if handle in self._always:
            del self._always[handle]
            return
        if handle in self._linear:
            del self._linear[handle]
            return
        places = self._placed.pop(handle, None)
        if places is None:
            places = self._choose(bound.expression, bound.table) or {}
        self._branching -= _is_branching(places)
        for (term, value), rest in places.items():
            probe = self._probes[term]
            probe.size -= 1
            if rest == _ALWAYS:
                others = tuple([other for other in probe.sure.pop(value) if other != handle])
                if others:
                    probe.sure[value] = others
            else:
                del probe.candidates[value][handle]
                if not probe.candidates[value]:
                    del probe.candidates[value]
            if not probe.size:
                del self._probes[term]

    def match(self, row: Row) -> list[Handle]:
        """The handles of the filters that are true for a row.

        Raises:
            ValueError: Of some it cannot be known, because a value is MISSING or cannot be compared here. See
                `partition()`.
        """
        found, unknown = self.partition(row)
        if unknown:
            raise ValueError(
                "filters need a value that is not known: ask partition(), which tells them apart"
            )
        return found

    def partition(self, row: Row) -> tuple[list[Handle], list[Handle]]:
        """The handles of the filters that are true for a row, and of those of which that cannot be known."""
        found = [*self._always]
        unknown: list[Handle] = []
        for probe in self._probes.values():
            value = probe.read(row)
            if value is MISSING:
                for handles in probe.sure.values():
                    unknown += handles
                for tests in probe.candidates.values():
                    _sort_out(tests, row, unknown, unknown)  # what is true here may still be in another place
                continue
            found += probe.sure.get(value, ())
            if value in probe.candidates:
                _sort_out(probe.candidates[value], row, found, unknown)
        if self._linear:
            _sort_out(self._linear, row, found, unknown)
        if self._branching:
            found = list(dict.fromkeys(found))
        if unknown:
            known = set(found)
            unknown = [handle for handle in dict.fromkeys(unknown) if handle not in known]
        return found, unknown

    def _choose(self, expression: Expression, table: Table) -> _Places | None:
        """Places of which one is true wherever the expression is, or None if there are none."""
        match expression:
            case Truth(False):
                return {}
            case IsNull(term):
                return {(term, None): _ALWAYS}
            case Comparison(term, "=", constant):
                return {(term, identity_of(constant, type_of(term, table))): _ALWAYS}
            case In(term, constants):
                kind = type_of(term, table)
                return {(term, identity_of(constant, kind)): _ALWAYS for constant in constants}
            case Or(operands):
                return self._choose_all(operands, table)
            case And(operands):
                return self._choose_one(operands, table)
            case _:
                return None

    def _choose_all(self, operands: Iterable[Expression], table: Table) -> _Places | None:
        """The places of OR: those of all its operands."""
        places: _Places = {}
        for operand in operands:
            chosen = self._choose(operand, table)
            if chosen is None:
                return None
            for place, rest in chosen.items():
                places[place] = any_of([places[place], rest]) if place in places else rest
        return places

    def _choose_one(self, operands: tuple[Expression, ...], table: Table) -> _Places | None:
        """The places of AND: those of one of its operands."""
        options = [
            (operand, places) for operand in operands if (places := self._choose(operand, table)) is not None
        ]
        if not options:
            return None
        operand, places = min(options, key=lambda option: self._cost(option[1]))
        others = [other for other in operands if other is not operand]
        return {place: all_of([rest, *others]) for place, rest in places.items()}

    def _cost(self, places: _Places) -> tuple[int, int]:
        """What the choice of these places costs a row that comes there; then, how new their terms are."""
        known = [(self._probes[term], value) for term, value in places if term in self._probes]
        return (
            sum(probe.load(value) for probe, value in known) + len(places),
            -sum(probe.size for probe, _ in known),
        )


def _is_branching(places: _Places) -> bool:
    return len({term for term, _ in places}) > 1


def _identity_reader(term: Term, table: Table) -> Callable[[Row], Hashable]:
    """What gives a term's value in the form in which equal values are equal; MISSING where it is not known."""
    read = reader_of(term, table)
    try:
        identity = type_of(term, table).identity
    except FilterError:  # a type that can only be asked for NULL
        identity = None
    if identity is None and not term.path:
        return read
    identify = identity or bytes

    def read_identity(row: Row) -> Hashable:
        try:
            value = read(row)
            return value if value is None or value is MISSING else identify(value)
        except Unknowable:
            return MISSING

    return read_identity


def _sort_out(tests: dict[Handle, Test], row: Row, found: list[Handle], unknown: list[Handle]) -> None:
    for handle, test in tests.items():
        outcome = test(row)
        if outcome is True:
            found.append(handle)
        elif outcome is MISSING:
            unknown.append(handle)
