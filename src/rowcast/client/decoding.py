"""Frames as the client reads them. No I/O.

The one rule of this room: a number keeps its value. JSON has numbers of any length and Python's float has 17
digits, so a number that a float would change becomes a Decimal; integers are exact in Python anyway.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Final

import msgspec

from rowcast.client.events import JSONObject

# Up to 15 digits survive the way into a float and back; a sign, a dot and a leading zero come on top.
_SAFE_CHARACTERS: Final = 16


def exact_number(text: str) -> float | Decimal:
    """A JSON number with a fraction or an exponent: as a float where that holds its value, else as a Decimal."""
    number = float(text)
    if len(text) <= _SAFE_CHARACTERS and "e" not in text and "E" not in text:
        return number
    exact = Decimal(text)
    return number if math.isfinite(number) and Decimal(repr(number)) == exact else exact


decode_frame: Final = msgspec.json.Decoder(JSONObject, float_hook=exact_number).decode
