"""Brings rows up to date from changes, where that can be known without asking. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import is_, itemgetter
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
        try:
            if _is_pages(data):
                return self._patch_pages(data, changes, key)
            if isinstance(data, list):
                strangers: Literal["refetch", "take"] = "refetch" if self._accepts is None else "take"
                return self._patch_list(cast("list[Row]", data), changes, key, strangers)
            if isinstance(data, dict):
                return _patch_row(cast("dict[str, Any]", data), changes)
        except KeyError:
            return None  # rows without their key columns cannot be told apart
        return None

    def _patch_list(
        self,
        rows: list[Row],
        changes: Sequence[ChangeEvent],
        key: QueryKey,
        strangers: Literal["refetch", "take", "ignore"],
    ) -> list[Row] | None:
        """`strangers` says what to do about a written row that is not among them."""
        identify = _identifier(changes)
        if identify is None:
            truncated = all(change.op == "TRUNCATE" for change in changes)
            return None if not truncated else [] if rows and changes else rows
        held = dict(zip(map(identify, rows), rows, strict=True))
        if len(held) < len(rows):
            return None  # the table's key does not tell these rows apart
        touched = False
        for change in changes:
            if change.op == "TRUNCATE":
                touched = touched or bool(held)
                held.clear()
                continue
            identity, left = identify(change.key), _identity_before(change, identify)
            before = held.get(identity) if left == identity else held.pop(left, None)
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
        identify = _identifier(changes)
        if identify is None or any(change.op == "TRUNCATE" for change in changes):
            return None
        held = {identify(row) for page in data.pages for row in page}
        if any(
            change.new is not None and _identity_before(change, identify) not in held for change in changes
        ):
            return None
        pages: list[list[Row]] = []
        for page in data.pages:
            patched = self._patch_list(page, changes, key, "ignore")
            if patched is None:
                return None
            pages.append(patched)
        return data if all(map(is_, pages, data.pages)) else InfiniteData(pages, data.page_params)


def _is_pages(data: object) -> TypeGuard[InfiniteData[list[Row], Any]]:
    return isinstance(data, InfiniteData)


def _patch_row(row: dict[str, Any], changes: Sequence[ChangeEvent]) -> dict[str, Any] | None:
    identify = _identifier(changes)
    for change in changes:
        if identify is None or change.op == "TRUNCATE":
            return None
        if identify(row) in {identify(change.key), _identity_before(change, identify)}:
            if change.new is None:
                return None
            row = {**row, **change.new}
    return row


def _identifier(changes: Sequence[ChangeEvent]) -> Callable[[Row], object] | None:
    """Gets the key from a row or raises KeyError; None if the changes have no key, being TRUNCATE or of a table without."""
    columns = next((tuple(change.key) for change in changes if change.key), ())
    return cast("Callable[[Row], object]", itemgetter(*columns)) if columns else None


def _identity_before(change: ChangeEvent, identify: Callable[[Row], object]) -> object:
    """The row's key before the change: another one only for an UPDATE of the key itself."""
    if change.op == "UPDATE" and change.old is not None and change.old.keys() >= change.key.keys():
        return identify(change.old)
    return identify(change.key)
