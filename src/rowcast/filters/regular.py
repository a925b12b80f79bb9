r"""Regular expressions: the part of PostgreSQL's that means the same everywhere, matched in linear time. No I/O.

The one rule of this room: a pattern costs each character of a text one table look-up, whatever the pattern and the
text. It is made into a deterministic automaton when the filter is bound, and refused if that would be too large.

Whether a text matches depends only on the set of texts that the pattern describes, so greediness does not matter here
and PostgreSQL's rules for it need no counterpart. Supported are characters, `.`, `[a-z]` and `[^a-z]`, `( )`, `(?: )`,
`|`, `* + ? {m,n}` with and without a further `?`, `^`, `$`, and a backslash before punctuation. Classes such as `\d` and
`[[:alpha:]]` hold different characters under each collation, and back references and look-around are not regular.

The way: parser → syntax tree → Thompson's non-deterministic automaton → subset construction over classes of
characters that the pattern does not tell apart.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, TypeAlias

from rowcast.filters.limits import MAX_DEPTH, MAX_PATTERN_LENGTH

_MAX_STATES: Final = 1_000  # of the first automaton; a{255} has 255
_MAX_STEPS: Final = 100_000  # of the construction, a tenth of a second; a list of 50 words takes 30,000
_MAX_REPEAT: Final = 255  # PostgreSQL's own bound
_LAST: Final = 0x10FFFF
_CACHED_CHARACTERS: Final = 1_000  # a text in Chinese has some hundred different ones

_Ranges: TypeAlias = tuple[tuple[int, int], ...]  # sorted, disjoint, both ends included


@dataclass(frozen=True, slots=True)
class _Characters:
    ranges: _Ranges


@dataclass(frozen=True, slots=True)
class _Sequence:
    parts: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Choice:
    branches: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Repeat:
    node: _Node
    low: int
    high: int | None


@dataclass(frozen=True, slots=True)
class _Anchor:
    at_start: bool


_Node: TypeAlias = _Characters | _Sequence | _Choice | _Repeat | _Anchor


@lru_cache(maxsize=64)
def regular(pattern: str, *, ignore_case: bool) -> Callable[[bytes], bool]:
    """Compile a pattern into the test whether a UTF-8 text has a match anywhere.

    Raises:
        ValueError: It cannot be used here; the text is what is expected instead.
    """
    if len(pattern) > MAX_PATTERN_LENGTH:
        raise ValueError(f"a pattern of at most {MAX_PATTERN_LENGTH} characters")
    if ignore_case and not pattern.isascii():
        raise ValueError(
            "only ASCII where case is ignored, because cases differ between systems: use ~ (match)"
        )
    automaton = _Automaton()
    automaton.build(_Parser(pattern, ignore_case=ignore_case).parse())
    return _determine(automaton)


class _Parser:
    def __init__(self, pattern: str, *, ignore_case: bool) -> None:
        self._pattern = pattern
        self._position = 0
        self._depth = 0
        self._ignore_case = ignore_case

    def parse(self) -> _Node:
        node = self._choice()
        if self._peek():
            raise ValueError(r"every ) to have its ( (write \) for the character)")
        return node

    def _peek(self) -> str:
        return self._pattern[self._position : self._position + 1]

    def _next(self) -> str:
        character = self._peek()
        self._position += 1
        return character

    def _accept(self, text: str) -> bool:
        found = self._pattern.startswith(text, self._position)
        self._position += len(text) * found
        return found

    def _choice(self) -> _Node:
        branches = [self._sequence()]
        while self._accept("|"):
            branches.append(self._sequence())
        return branches[0] if len(branches) == 1 else _Choice(tuple(branches))

    def _sequence(self) -> _Node:
        parts: list[_Node] = []
        while self._peek() not in {"", "|", ")"}:
            parts.append(self._quantified())
        return parts[0] if len(parts) == 1 else _Sequence(tuple(parts))

    def _quantified(self) -> _Node:
        node = self._atom()
        match self._peek():
            case "*":
                low, high = 0, None
            case "+":
                low, high = 1, None
            case "?":
                low, high = 0, 1
            case "{":
                low, high = self._bounds()
            case _:
                return node
        self._position += 1
        self._accept("?")
        if self._peek() in {"*", "+", "?", "{"} or isinstance(node, _Anchor):
            raise ValueError(
                "one quantifier after an atom, and none after ^ and $ (parentheses make an atom)"
            )
        return _Repeat(node, low, high)

    def _bounds(self) -> tuple[int, int | None]:
        """Read `{m,n}` up to the closing brace, which stays to be read."""
        end = self._pattern.find("}", self._position)
        low, comma, high = self._pattern[self._position + 1 : end].partition(",")
        numbers = [number for number in (low, high) if number]
        if (
            end < 0
            or not low
            or any(not (number.isascii() and number.isdigit() and len(number) < 4) for number in numbers)
            or any(int(number) > _MAX_REPEAT for number in numbers)
            or (high and int(low) > int(high))
        ):
            raise ValueError(rf"{{m,n}} with numbers up to {_MAX_REPEAT} (write \{{ for the character)")
        self._position = end
        return int(low), int(high) if high else None if comma else int(low)

    def _atom(self) -> _Node:
        character = self._next()
        match character:
            case "(":
                return self._group()
            case "[":
                return _Characters(self._bracket())
            case ".":
                return _Characters(((0, _LAST),))
            case "^" | "$":
                return _Anchor(character == "^")
            case "*" | "+" | "?" | "{":
                raise ValueError(rf"something before {character} (write \{character} for the character)")
            case "\\":
                return self._literal(self._escaped())
            case _:
                return self._literal(character)

    def _literal(self, character: str) -> _Node:
        return _Characters(self._with_cases([(ord(character), ord(character))]))

    def _group(self) -> _Node:
        if self._peek() == "?" and not self._accept("?:"):
            raise ValueError("no (? but (?:")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError(f"parentheses at most {MAX_DEPTH} levels deep")
        node = self._choice()
        if not self._accept(")"):
            raise ValueError(r"every ( to have its ) (write \( for the character)")
        self._depth -= 1
        # A sequence of one keeps `(^)*` apart from `^*`.
        return _Sequence((node,))

    def _escaped(self) -> str:
        character = self._next()
        if not character.isascii() or character.isalnum() or not character:
            raise ValueError(
                rf"no \{character}: write a class as characters, such as [0-9] for \d, and put a backslash before "
                "punctuation only"
            )
        return character

    def _bracket(self) -> _Ranges:
        negated = self._accept("^")
        ranges: list[tuple[int, int]] = []
        first = True
        while first or not self._accept("]"):
            low = self._member(first=first)
            first = False
            if self._peek() == "-" and not self._pattern.startswith("-]", self._position):
                self._position += 1
                high = self._member(first=False)
                if high < low or (self._peek() == "-" and not self._pattern.startswith("-]", self._position)):
                    raise ValueError("ranges such as a-z, from the lower to the higher character")
                ranges.append((low, high))
            else:
                ranges.append((low, low))
        cased = self._with_cases(ranges)
        return _complement(cased) if negated else cased

    def _member(self, *, first: bool) -> int:
        character = self._next()
        match character:
            case "":
                raise ValueError(r"every [ to have its ] (write \[ for the character)")
            case "-" if not first and self._peek() != "]":
                raise ValueError(r"- in brackets first or last (or write \-)")
            case "[" if self._peek() in {":", ".", "="}:
                raise ValueError(
                    "characters instead of [: :], [. .] and [= =], which depend on the collation"
                )
            case "\\":
                return ord(self._escaped())
            case _:
                return ord(character)

    def _with_cases(self, ranges: list[tuple[int, int]]) -> _Ranges:
        both = list(ranges)
        if self._ignore_case:
            for low, high in ranges:
                for start, shift in ((ord("A"), 32), (ord("a"), -32)):
                    both.append((max(low, start) + shift, min(high, start + 25) + shift))
        merged: list[tuple[int, int]] = []
        for low, high in sorted(pair for pair in both if pair[0] <= pair[1]):
            if merged and low <= merged[-1][1] + 1:
                merged[-1] = merged[-1][0], max(high, merged[-1][1])
            else:
                merged.append((low, high))
        return tuple(merged)


def _complement(ranges: _Ranges) -> _Ranges:
    edges = [-1, *(edge for pair in ranges for edge in pair), _LAST + 1]
    return tuple(
        (low + 1, high - 1) for low, high in zip(edges[::2], edges[1::2], strict=True) if high - low > 1
    )


@dataclass(slots=True)
class _State:
    """A state of the first automaton: where a character leads, and where nothing, a start or an end does."""

    ranges: _Ranges = ()
    target: int = -1
    free: list[int] = field(default_factory=list[int])
    at_start: list[int] = field(default_factory=list[int])
    at_end: list[int] = field(default_factory=list[int])


class _Automaton:
    """Thompson's construction. State 0 is the first one, `final` the last."""

    def __init__(self) -> None:
        self.states = [_State()]
        self.final = 0

    def build(self, node: _Node) -> None:
        self.final = self._add(node, 0)

    def _new(self) -> int:
        if len(self.states) >= _MAX_STATES:
            raise ValueError("a simpler pattern: this one repeats too much")
        self.states.append(_State())
        return len(self.states) - 1

    def _add(self, node: _Node, start: int) -> int:
        """Append the automaton of a node to a state; returns the state in which it ends."""
        match node:
            case _Characters(ranges):
                end = self._new()
                before = self._free(start)
                self.states[before].ranges, self.states[before].target = ranges, end
                return end
            case _Anchor(at_start):
                end = self._new()
                state = self.states[start]
                (state.at_start if at_start else state.at_end).append(end)
                return end
            case _Sequence(parts):
                for part in parts:
                    start = self._add(part, start)
                return start
            case _Choice(branches):
                end = self._new()
                for branch in branches:
                    self.states[self._add(branch, self._free(start))].free.append(end)
                return end
            case _:
                repeated, low, high = node.node, node.low, node.high
                for _ in range(low):
                    start = self._add(repeated, start)
                if high is None:
                    loop = self._free(start)
                    self.states[self._add(repeated, loop)].free.append(loop)
                    return self._free(loop)
                end = self._new()
                for _ in range(high - low):
                    self.states[start].free.append(end)
                    start = self._add(repeated, self._free(start))
                self.states[start].free.append(end)
                return end

    def _free(self, start: int) -> int:
        """A new state that is reached from `start` without a character."""
        end = self._new()
        self.states[start].free.append(end)
        return end


# Per class of characters the row it leads to; last, whether the text may end here.
_Row: TypeAlias = list[Any]


class _Classes(dict[str, int]):
    """Character → the class of characters that the pattern does not tell apart from it."""

    def __init__(self, cuts: list[int]) -> None:
        super().__init__()
        self._cuts = cuts

    def __missing__(self, character: str) -> int:
        found = bisect_right(self._cuts, ord(character))
        if len(self) < _CACHED_CHARACTERS:
            self[character] = found
        return found


def _determine(automaton: _Automaton) -> Callable[[bytes], bool]:
    """The subset construction, and the loop that runs its result."""
    states, final = automaton.states, automaton.final
    cuts = sorted({edge for state in states for low, high in state.ranges for edge in (low, high + 1)})
    classes = _Classes(cuts)
    leads = [
        [number for low, high in state.ranges for number in range(classes[chr(low)], classes[chr(high)] + 1)]
        for state in states
    ]
    steps = 0

    def spend(cost: int) -> None:
        nonlocal steps
        steps += cost
        if steps > _MAX_STEPS:
            raise ValueError("a simpler pattern: this one needs too large a table")

    def closure(sources: Iterable[int], *, start: bool = False, end: bool = False) -> frozenset[int]:
        reached = set(sources)
        waiting = list(reached)
        while waiting:
            state = states[waiting.pop()]
            for target in [*state.free, *(state.at_start if start else ()), *(state.at_end if end else ())]:
                if target not in reached:
                    reached.add(target)
                    waiting.append(target)
        spend(len(reached))
        return frozenset(reached)

    anywhere = closure([0])  # a match may begin at every character
    accepted: _Row = []
    rejected: _Row = []
    rows: dict[frozenset[int], _Row] = {}
    unfinished: list[tuple[frozenset[int], _Row]] = []

    def row_of(subset: frozenset[int], *, start: bool = False) -> _Row:
        if final in subset:
            return accepted
        if subset in rows:
            return rows[subset]
        may_end = final in closure(subset, start=start, end=True)
        if not may_end and not any(leads[state] for state in subset | anywhere):
            return rejected
        row: _Row = [None] * (len(cuts) + 1) + [may_end]
        unfinished.append((subset, row))
        if not start:
            rows[subset] = row
        return row

    initial = row_of(closure([0], start=True), start=True)
    while unfinished:
        subset, row = unfinished.pop()
        targets: list[set[int]] = [set() for _ in row[:-1]]
        spend(len(row))
        for state in subset:
            spend(len(leads[state]))
            for number in leads[state]:
                targets[number].add(states[state].target)
        row[:-1] = [row_of(closure(target) | anywhere) for target in targets]

    def test(text: bytes) -> bool:
        row = initial
        for character in text.decode():
            if row is accepted:
                return True
            if row is rejected:
                return False
            row = row[classes[character]]
        return row is accepted or (row is not rejected and row[-1])

    return test
