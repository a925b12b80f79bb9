"""The mutation that the present request carries."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

MUTATION_HEADER: Final = "Rowcast-Mutation"
# Longer than any UUID, and what rowcast.mutation takes.
MAX_ID_CHARACTERS: Final = 200

_current: ContextVar[str | None] = ContextVar("rowcast_mutation", default=None)


def current_mutation() -> str | None:
    """The id of the mutation that the present request carries, None where it carries none."""
    return _current.get()


@contextmanager
def carrying(header: str | None) -> Generator[None]:
    """Within the block, `current_mutation()` is what the header says; one that is too long counts as none."""
    mutation = (header or "").strip()
    token = _current.set(mutation if 0 < len(mutation) <= MAX_ID_CHARACTERS else None)
    try:
        yield
    finally:
        _current.reset(token)
