"""Cuts the text of a filter in SQL into tokens as PostgreSQL's lexer would. No I/O.

The one rule of this room: what PostgreSQL reads otherwise, or reads only in some versions, is not read at all:
comments, dollar quotes, `5x`, `0x10`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, cast

from rowcast.errors import FilterError
from rowcast.filters.limits import check_text, excerpt

Kind: TypeAlias = Literal[
    "escape", "string", "quoted", "number", "parameter", "word", "mark", "operator", "end"
]
# Nothing in it can be matched in two ways, so no text takes long: ++ and *+ never give back.
# (No operator that we know has more than three characters.)
_TOKEN: Final = re.compile(
    r"""(?:
        (?P<escape>[eE]'(?:[^'\\]|''|\\.)*')
      | (?P<string>'(?:[^']|'')*')
      | (?P<quoted>"(?:[^"]|"")+")
      | (?P<number>(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][+-]?[0-9]++)?)(?![\w$.])
      | (?P<parameter>\$[0-9]{1,5})(?![\w$])
      | (?P<word>[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_$\x80-\U0010ffff]*)
      | (?P<mark>::|[(),.\[\]])
      | (?P<operator>[-+*/<>=~!@\#%^&|`?]{1,20})
      | (?P<end>\Z)
    )""",
    re.VERBOSE | re.DOTALL,
)
_SPACE: Final = re.compile(r"[ \t\n\r\f\v]*")
_ESCAPES: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_ESCAPE: Final = re.compile(r"''|\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Token:
    kind: Kind
    text: str
    position: int


def tokenize(text: str) -> Iterator[Token]:
    position = 0
    while True:
        spaces = _SPACE.match(text, position)
        position = spaces.end() if spaces else position
        match = _TOKEN.match(text, position)
        if match is None:
            raise FilterError(
                f"the filter cannot be read from character {position + 1} on: {excerpt(text[position:])}"
            )
        kind, found = cast("Kind", match.lastgroup), match[0]
        if kind == "operator" and not set(found) & set("~!@#%^&|`?"):
            # As in PostgreSQL: `a=-1` is `a = -1`, because no operator like `=-` ends in a sign.
            found = found[0] + found[1:].rstrip("+-")
        yield Token(kind, found, position)
        if kind == "end":
            return
        position += len(found)


def fold(word: str) -> str:
    """Unquoted words have no capitals; PostgreSQL folds ASCII only."""
    return word.encode().lower().decode()


def unescape(text: str) -> str:
    def character(match: re.Match[str]) -> str:
        short, long, other = match.groups()
        if short or long:
            code = int(short or long, 16)
            if code > 0x10FFFF:
                raise FilterError(rf"\U{long} is no character: the last one is \U0010FFFF")
            return chr(code)
        if other is None:
            return "'"
        if other in _ESCAPES or not other.isalnum():
            return _ESCAPES.get(other, other)
        raise FilterError(rf"the escape \{other} cannot be used in filters: write the character, or \uXXXX")

    unescaped = _ESCAPE.sub(character, text)
    check_text(unescaped)
    return unescaped
