"""Structural sharing: new data keeps the old references wherever nothing changed. No I/O.

Lists, tuples and dicts are walked; any other value is kept if it has the same type and is equal. So `1` never takes the
place of `True`, dates and decimals compare by value, dataclasses by their fields, and whatever cannot be compared
(an array of numpy, say) counts as changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import is_
from typing import Any, Final, TypeGuard, TypeVar, cast

T = TypeVar("T")

# Four frames a level, of the 1,000 that Python allows; the rest is the caller's. Deeper data is taken as it comes.
_MAXIMUM_DEPTH: Final = 100

# Most of what is in a row: answered without a call of their own, which halves the time for a big list.
_PLAIN: Final = frozenset({str, int, float, bool, type(None)})


def share_structure(old: object, new: T) -> T:
    """`new`, with every part that equals the part of `old` in the same place replaced by that very object.

    Returns:
        `old` itself if nothing differs. Neither argument is modified.
    """
    return cast("T", _share(old, new, 0))


def _share(old: Any, new: Any, depth: int) -> Any:
    if old is new or type(old) is not type(new) or depth > _MAXIMUM_DEPTH:
        return new
    if _is_plain_dict(new):
        return _share_fields(old, new, depth)
    build = _builder(new)
    if build is not None:
        items = _share_items(old, new, depth)
        return old if items is old else build(items)
    return old if _equal(old, new) else new


def _is_plain_dict(value: Any) -> TypeGuard[dict[Any, Any]]:
    return type(value) is dict


def _builder(value: Any) -> Callable[[Sequence[Any]], Any] | None:
    """What makes a sequence like `value` from its items; None if it is not one that is walked."""
    kind = value.__class__
    if kind is list or kind is tuple:
        return cast("Callable[[Sequence[Any]], Any]", kind)
    return getattr(kind, "_make", None) if isinstance(value, tuple) else None


def _share_fields(old: dict[Any, Any], new: dict[Any, Any], depth: int) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    same = len(old) == len(new)
    for name, item in new.items():
        if name in old:
            kept = result[name] = _share_value(old[name], item, depth)
            same = same and kept is old[name]
        else:
            result[name] = item
            same = False
    return old if same else result


def _share_items(old: Sequence[Any], new: Sequence[Any], depth: int) -> Sequence[Any]:
    pairs = zip(old, new, strict=False)
    result: list[Any] = [
        after if before is after else _share_value(before, after, depth) for before, after in pairs
    ]
    if len(old) == len(new) and all(map(is_, old, result)):
        return old
    result.extend(new[len(result) :])
    return result


def _share_value(old: object, new: object, depth: int) -> object:
    if type(new) in _PLAIN:
        return old if type(old) is type(new) and old == new else new
    return _share(old, new, depth + 1)


def _equal(left: object, right: object) -> bool:
    try:
        return bool(left == right)
    except Exception:  # noqa: BLE001 -- any error of a foreign __eq__ means that the two cannot be compared
        return False
