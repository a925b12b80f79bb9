"""Finds entries by the beginning of their keys, without looking at the others. No I/O.

A tree with one level per element of the key. A filter walks it: a plain element is one lookup, an object or a list
is matched against the objects and lists of its level only. 100 matches in 10,000 entries cost 100 steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

from .keys import Canonical, QueryKey, canonical_key, label, partial_match

T = TypeVar("T")


class _Node(Generic[T]):
    __slots__ = ("children", "containers", "entry")

    def __init__(self) -> None:
        self.children: dict[str, _Node[T]] = {}
        self.containers: dict[str, Canonical] = {}  # those children whose element is a list or an object
        self.entry: T | None = None

    def entries(self) -> Iterator[T]:
        if self.entry is not None:
            yield self.entry
        for child in self.children.values():
            yield from child.entries()


class KeyIndex(Generic[T]):
    """A set of entries, each under a key of its own."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()

    def add(self, key: QueryKey, entry: T) -> None:
        """Put `entry` under `key`, instead of what was there."""
        node = self._root
        for element in canonical_key(key):
            name = label(element)
            child = node.children.get(name)
            if child is None:
                child = node.children[name] = _Node()
                if isinstance(element, list | dict):
                    node.containers[name] = element
            node = child
        node.entry = entry

    def remove(self, key: QueryKey) -> None:
        """Take the entry under `key` out, if there is one, with the branches that only led to it."""
        path: list[tuple[_Node[T], str]] = []
        node = self._root
        for name in map(label, canonical_key(key)):
            if name not in node.children:
                return
            path.append((node, name))
            node = node.children[name]
        node.entry = None
        for parent, name in reversed(path):
            child = parent.children[name]
            if child.children or child.entry is not None:
                return
            del parent.children[name]
            parent.containers.pop(name, None)

    def find(self, prefix: QueryKey) -> list[T]:
        """All entries whose keys begin with `prefix`."""
        return [entry for node in self._walk(self._root, canonical_key(prefix)) for entry in node.entries()]

    def _walk(self, node: _Node[T], elements: Sequence[Any]) -> Iterator[_Node[T]]:
        if not elements:
            yield node
            return
        first, rest = elements[0], elements[1:]
        if isinstance(first, list | dict):
            for name, element in node.containers.items():
                if partial_match(element, first):
                    yield from self._walk(node.children[name], rest)
        elif (child := node.children.get(label(first))) is not None:
            yield from self._walk(child, rest)
