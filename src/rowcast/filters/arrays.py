"""Arrays: literals of one dimension, and PostgreSQL's text output of any. No I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable
from typing import Final

from rowcast.filters.decimals import SPACE
from rowcast.filters.scalars import ValueType

_QUOTED: Final = r'"(?:[^"\\]|\\.)*"'
_BARE: Final = rf'[^"\\{{}},{SPACE}](?:[^"\\{{}},]*[^"\\{{}},{SPACE}])?'
_LITERAL_ELEMENT: Final = re.compile(rf"[{SPACE}]*+(?:({_QUOTED})|({_BARE}))[{SPACE}]*", re.DOTALL)
_OUTPUT_ELEMENT: Final = re.compile(rf"({_QUOTED})|([^{{}},]+)".encode(), re.DOTALL)
_OUTPUT_TOKEN: Final = re.compile(rb"[{}]|[^{},]+")
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)
_ESCAPED_BYTES: Final = re.compile(rb"\\(.)", re.DOTALL)
# What array_out puts in quotes.
_SPECIAL: Final = re.compile(r'|null|.*[\s"\\{},].*', re.DOTALL | re.IGNORECASE | re.ASCII)
_MARKS: Final = frozenset({b"{", b"}", b"NULL"})


def read_array(text: str) -> list[str | None]:
    """The elements of an array literal of one dimension.

    Raises:
        ValueError: It is none; the text is what is expected.
    """
    inner = text.strip(SPACE)
    if not (inner.startswith("{") and inner.endswith("}")):
        raise ValueError('an array, such as {1,2} or {"a b",c}')
    inner = inner[1:-1]
    if not inner.strip(SPACE):
        return []
    elements: list[str | None] = []
    position = 0
    while True:
        match = _LITERAL_ELEMENT.match(inner, position)
        if match is None:
            break
        quoted, bare = match.groups()
        if quoted is not None:
            elements.append(_ESCAPED.sub(r"\1", quoted[1:-1]))
        else:
            elements.append(None if bare.lower() == "null" else bare)
        position = match.end()
        if position == len(inner):
            return elements
        if inner[position] != ",":
            break
        position += 1
    raise ValueError('an array of one dimension, such as {1,2} or {"a b",c}')


def write_array(elements: Iterable[str | None]) -> str:
    """An array literal, as array_out writes it."""
    return f"{{{','.join(map(_write_element, elements))}}}"


def _write_element(element: str | None) -> str:
    if element is None:
        return "NULL"
    if not _SPECIAL.fullmatch(element):
        return element
    return '"{}"'.format(element.replace("\\", "\\\\").replace('"', '\\"'))


def array_type(element: ValueType) -> ValueType:
    """Arrays of a type whose text output is never quoted in an array, or is canonical."""

    def read(text: str) -> str:
        return write_array(None if item is None else element.read(item) for item in read_array(text))

    def identity(text: bytes) -> Hashable:
        bounds, brace, body = text.partition(b"{")
        tokens = _OUTPUT_TOKEN.findall(brace + body)
        return bounds, tuple([token if token in _MARKS else element.identify(token) for token in tokens])

    return ValueType(
        f"{element.name}[]",
        "array",
        read,
        identity=None if element.identity is None else identity,
        disorder="arrays have no order here: use eq or cs",
        collation=element.collation,
        element=element,
    )


def contains(element: ValueType, wanted: bytes) -> Callable[[bytes], bool]:
    """The test `value @> wanted`: whether every element of it is in the value, NULL never being."""
    needed = frozenset(_elements(element, wanted))
    if None in needed:
        return lambda _: False
    return lambda text: needed <= frozenset(_elements(element, text))


def _elements(element: ValueType, text: bytes) -> list[Hashable]:
    found: list[Hashable] = []
    for quoted, bare in _OUTPUT_ELEMENT.findall(text[text.index(b"{") :]):
        if quoted:
            found.append(element.identify(_ESCAPED_BYTES.sub(rb"\1", quoted[1:-1])))
        else:
            found.append(None if bare == b"NULL" else element.identify(bare))
    return found
