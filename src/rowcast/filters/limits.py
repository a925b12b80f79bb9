"""How large a filter may be. Filters come from clients: each limit keeps one of them from costing others dearly."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from rowcast.errors import FilterError

MAX_LENGTH: Final = 65_536  # characters; 1,000 uuids in a list take 39,000
MAX_DEPTH: Final = (
    32  # parentheses and NOTs in each other; people write four, and the recursion stays shallow
)
MAX_CONDITIONS: Final = (
    200  # each costs a change up to half a microsecond; a filter form on a page has a dozen
)
MAX_CONSTANTS: Final = 2_000  # of all lists together; each is an entry of the index
MAX_PATTERN_LENGTH: Final = (
    1_000  # characters; a pattern's matching time grows with its length times the text's
)


class Budget:
    """Counts what one filter's text holds while it is parsed."""

    __slots__ = ("_conditions", "_constants", "_depth")

    def __init__(self, text: str) -> None:
        if len(text) > MAX_LENGTH:
            raise FilterError(
                f"the filter has {len(text)} characters, {MAX_LENGTH} are allowed: make it shorter"
            )
        check_text(text)
        self._conditions = self._constants = self._depth = 0

    def condition(self) -> None:
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            raise FilterError(
                f"the filter has more than {MAX_CONDITIONS} conditions: use lists (in), or split it"
            )

    def constant(self) -> None:
        self._constants += 1
        if self._constants > MAX_CONSTANTS:
            raise FilterError(
                f"the filter has more than {MAX_CONSTANTS} values: split it into several subscriptions"
            )

    @contextmanager
    def nested(self) -> Generator[None]:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise FilterError(f"the filter is nested more than {MAX_DEPTH} levels deep: make it flatter")
        yield
        self._depth -= 1


def check_text(text: str) -> None:
    """Refuse text that PostgreSQL cannot hold.

    Raises:
        FilterError: It has a NUL or half of a surrogate pair.
    """
    if "\0" in text or (not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)):
        raise FilterError(
            "the filter holds a NUL character or half of a surrogate pair: PostgreSQL has no such text"
        )


def excerpt(text: str) -> str:
    """Text in quotes for a message, cut if it is long."""
    return f'"{text}"' if len(text) <= 60 else f'"{text[:57]}…"'
