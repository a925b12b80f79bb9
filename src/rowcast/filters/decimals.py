"""Decimal numbers: literals and PostgreSQL's text output, which never has exponents → canonical text. No I/O."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

SPACE: Final = " \t\n\v\f\r"  # what PostgreSQL skips around numbers, booleans and times
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,5})?")
SPECIAL: Final = {
    "nan": "NaN",
    **dict.fromkeys(["infinity", "+infinity", "inf", "+inf"], "Infinity"),
    **dict.fromkeys(["-infinity", "-inf"], "-Infinity"),
}
# A column of type numeric(p) takes up to 1,000 digits. Without a bound, 1e99999 would be a text of 100 kB.
_MAX_DIGITS: Final = 1_000


def read_decimal(text: str) -> str:
    """The shortest text of a number, without exponent: `150` for `+1.50e2`.

    Raises:
        ValueError: It is none; the text is the form that is expected.
    """
    text = text.strip(SPACE)
    if not is_number(text):
        raise ValueError("a number, such as 9.95")
    value = Decimal(text)
    if abs(value.adjusted()) > _MAX_DIGITS:
        raise ValueError(f"a number of at most {_MAX_DIGITS} digits")
    return trim_zeros(f"{value:f}".encode()).decode() if value else "0"


def is_number(text: str) -> bool:
    """Whether text is a number that is written in decimal digits."""
    return len(text) <= _MAX_DIGITS and _NUMBER.fullmatch(text) is not None


def trim_zeros(text: bytes) -> bytes:
    """Canonical form of numeric's text output, which keeps the zeros it was given."""
    return text.rstrip(b"0").rstrip(b".") if b"." in text else text
