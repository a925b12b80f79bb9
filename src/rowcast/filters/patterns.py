r"""LIKE and ILIKE, in time that grows with the text's length times the pattern's at worst. No I/O.

The one rule of this room: what lower() makes of a character is only relied on where every library that PostgreSQL may
use agrees, whatever its version of Unicode. A pattern with other characters is refused for ILIKE.

ILIKE compares lower(text) with lower(pattern). Under the collation C only ASCII has two cases. Elsewhere each
character has one lower form, but for İ (U+0130), which full Unicode rules make two characters of.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final

from rowcast.filters.limits import MAX_PATTERN_LENGTH
from rowcast.model import Collation

Test = Callable[[bytes], bool]

_ANY_CHARACTER: Final = "\0"  # `_` in a parsed pattern; PostgreSQL's text has no NUL

# Letters whose cases have been the same since Unicode 3.1: Latin-1, Latin Extended-A, Greek, Cyrillic. Not ß, dotted and
# dotless i and sigma, where languages, libraries and versions differ.
_UNSTABLE: Final = frozenset("ßİıΣσς")
_LETTERS: Final = (range(0xA0, 0x180), range(0x386, 0x3CF), range(0x400, 0x460))
# Scripts without cases: Hebrew to Myanmar, punctuation, the East Asian ones.
_CASELESS: Final = (range(0x591, 0x10A0), range(0x2010, 0x2070), range(0x3000, 0xA000), range(0xAC00, 0xD7A4))
_STABLE: Final = (range(0x80), *_LETTERS, *_CASELESS)
# Signs outside of those ranges that lower() makes a letter of them of: Kelvin, Ångström, Ohm, theta.
_SIGNS: Final = (0x212A, 0x212B, 0x2126, 0x3F4)


def _lower_forms(ranges: Iterable[Iterable[int]]) -> dict[int, str]:
    forms = {code: chr(code).lower() for codes in ranges for code in codes if chr(code) not in _UNSTABLE}
    return {code: lower for code, lower in forms.items() if lower != chr(code)}


_SIMPLE: Final = {**_lower_forms([range(0x80), *_LETTERS, _SIGNS]), 0x130: "i"}
_FULL: Final = {**_SIMPLE, 0x130: "i\u0307"}


def like(pattern: str) -> Test:
    """Compile a LIKE pattern into a test of UTF-8 text.

    Raises:
        ValueError: It is not a pattern; the text is what is expected.
    """
    return _matcher(_segments(pattern))


def ilike(pattern: str, collation: Collation | None) -> Test:
    """Compile an ILIKE pattern.

    Raises:
        ValueError: It is not a pattern, or has characters whose lower form is not sure; the text is what is expected.
    """
    segments = _segments(pattern)
    lower = "other" if collation is None else collation.lower
    if lower == "other":
        name = collation.name if collation else "which is not known here"
        raise ValueError(f"no ilike: lower() under the collation {name} is PostgreSQL's own; use like")
    if lower == "ascii":
        matches = _matcher([_lower_ascii(segment) for segment in segments])
        return lambda text: matches(text.lower())
    for character in "".join(segments):
        if character in _UNSTABLE or not any(ord(character) in codes for codes in _STABLE):
            raise ValueError(
                f'ilike without "{character}", whose lower form differs between systems: use like'
            )
    forms = _SIMPLE if lower == "simple" else _FULL
    matches = _matcher([segment.translate(forms) for segment in segments])

    def test(text: bytes) -> bool:
        return matches(text.lower() if text.isascii() else text.decode().translate(forms).encode())

    return test


def _lower_ascii(text: str) -> str:
    return text.encode().lower().decode()


def _segments(pattern: str) -> list[str]:
    """What stands between the `%`, unescaped."""
    if len(pattern) > MAX_PATTERN_LENGTH:
        raise ValueError(f"a pattern of at most {MAX_PATTERN_LENGTH} characters")
    segments = [""]
    characters = iter(pattern)
    for character in characters:
        match character:
            case "%":
                segments.append("")
            case "_":
                segments[-1] += _ANY_CHARACTER
            case "\\":
                escaped = next(characters, None)
                if escaped is None:
                    raise ValueError(r"a pattern that does not end in a backslash (write \\ for one)")
                segments[-1] += escaped
            case _:
                segments[-1] += character
    return segments


def _matcher(segments: list[str]) -> Test:
    if any(_ANY_CHARACTER in segment for segment in segments):
        return _match_with_wildcards(segments)
    first, *rest = [segment.encode() for segment in segments]
    if not rest:
        return lambda text: text == first
    parts, last = [segment for segment in rest[:-1] if segment], rest[-1]
    if not parts:
        shortest = len(first) + len(last)
        return lambda text: len(text) >= shortest and text.startswith(first) and text.endswith(last)

    def test(text: bytes) -> bool:
        if not (text.startswith(first) and text.endswith(last)):
            return False
        position, end = len(first), len(text) - len(last)
        for part in parts:
            position = text.find(part, position, end)
            if position < 0:
                return False
            position += len(part)
        return position <= end

    return test


def _match_with_wildcards(segments: list[str]) -> Test:
    first, *rest = [
        "".join("." if c == _ANY_CHARACTER else re.escape(c) for c in segment) for segment in segments
    ]
    # Each part is taken where it is found first and never given back, so the time cannot explode.
    parts = [f"(?>.*?{part})" for part in rest[:-1]] + [f".*{part}" for part in rest[-1:]]
    fits = re.compile("".join([first, *parts]), re.DOTALL).fullmatch
    return lambda text: fits(text.decode()) is not None
