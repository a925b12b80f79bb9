"""Brings rows up to date from changes, where that can be known without asking. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypeGuard, cast

from .journal import ChangeEvent
from .keys import QueryKey
from .options import InfiniteData

Row: TypeAlias = Mapping[str, Any]


class RowPatch:
    """Patches data that is a list of rows, an infinite query's pages of such lists, or one row; rows are dicts.

    Updates and deletions are applied where the row is found. Whether and where a new row belongs can only be known from
    `accepts`; without it, and for pages, the query is refetched. Applying a change twice does no harm.

    Args:
        accepts: Whether a row belongs to the query of a key. A row that no longer does is taken out.
        order: The sort key of a list's rows; without it, new rows come last.
    """

    def __init__(
        self,
        *,
        accepts: Callable[[Row, QueryKey], bool] | None = None,
        order: Callable[[Row], Any] | None = None,
    ) -> None:
        self._accepts = accepts
        self._order = order

    def __call__(self, data: Any, changes: Sequence[ChangeEvent], key: QueryKey) -> Any:
        """The patched data; `data` itself if it is not concerned, None if it must be refetched."""
        if _is_pages(data):
            return self._patch_pages(data, changes, key)
        if isinstance(data, list):
            strangers: Literal["refetch", "take"] = "refetch" if self._accepts is None else "take"
            return self._patch_list(cast("list[Row]", data), changes, key, strangers)
        if isinstance(data, dict):
            return _patch_row(cast("dict[str, Any]", data), changes)
        return None

    def _patch_list(
        self,
        rows: list[Row],
        changes: Sequence[ChangeEvent],
        key: QueryKey,
        strangers: Literal["refetch", "take", "ignore"],
    ) -> list[Row] | None:
        """`strangers` says what to do about a written row that is not among them."""
        columns = _key_columns(changes)
        held = {_identity(row, columns): row for row in rows}
        if len(held) < len(rows) or None in held:
            return None  # these rows cannot be told apart by the table's key
        touched = False
        for change in changes:
            if change.op == "TRUNCATE":
                touched = touched or bool(held)
                held.clear()
                continue
            identity, left = _identity(change.key, columns), _left_identity(change, columns)
            before = held.pop(left, None) if left is not None else held.get(identity)
            touched = touched or before is not None
            if change.new is None:
                held.pop(identity, None)
                continue
            if before is None and strangers != "take":
                if strangers == "refetch":
                    return None
                continue
            row = {**(before or {}), **change.new}
            if self._accepts is None or self._accepts(row, key):
                held[identity] = row
                touched = True
            else:
                held.pop(identity, None)
        if not touched:
            return rows
        return sorted(held.values(), key=self._order) if self._order is not None else list(held.values())

    def _patch_pages(
        self, data: InfiniteData[list[Row], Any], changes: Sequence[ChangeEvent], key: QueryKey
    ) -> InfiniteData[list[Row], Any] | None:
        columns = _key_columns(changes)
        held = {_identity(row, columns) for page in data.pages for row in page}
        for change in changes:
            written = _left_identity(change, columns) or _identity(change.key, columns)
            if change.op == "TRUNCATE" or (change.new is not None and written not in held):
                return None
        pages: list[list[Row]] = []
        for page in data.pages:
            patched = self._patch_list(page, changes, key, "ignore")
            if patched is None:
                return None
            pages.append(patched)
        return data if all(map(_identical, pages, data.pages)) else InfiniteData(pages, data.page_params)


def _is_pages(data: object) -> TypeGuard[InfiniteData[list[Row], Any]]:
    return isinstance(data, InfiniteData)


def _patch_row(row: dict[str, Any], changes: Sequence[ChangeEvent]) -> dict[str, Any] | None:
    columns = _key_columns(changes)
    identity = _identity(row, columns)
    for change in changes:
        if identity is None or change.op == "TRUNCATE":
            return None
        if identity in {_identity(change.key, columns), _left_identity(change, columns)}:
            if change.new is None:
                return None
            row = {**row, **change.new}
            identity = _identity(row, columns)
    return row


def _key_columns(changes: Sequence[ChangeEvent]) -> tuple[str, ...]:
    return next((tuple(change.key) for change in changes if change.key), ())


def _identity(row: Row, columns: tuple[str, ...]) -> tuple[Any, ...] | None:
    """The row's key; None if it does not have all of its columns."""
    return tuple(row[column] for column in columns) if row.keys() >= set(columns) else None


def _left_identity(change: ChangeEvent, columns: tuple[str, ...]) -> tuple[Any, ...] | None:
    """The key that an UPDATE of the key itself has left; None if it has not changed."""
    old = None if change.op != "UPDATE" or change.old is None else _identity(change.old, columns)
    return None if old == _identity(change.key, columns) else old


def _identical(left: object, right: object) -> bool:
    return left is right
