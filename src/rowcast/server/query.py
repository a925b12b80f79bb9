"""The query of a URL as the fields of a `subscribe` frame. No I/O.

The one rule of this room: nothing is dropped and nothing is guessed. What is not understood is refused, with a
sentence that says what to write.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final
from urllib.parse import parse_qs

import msgspec

from rowcast.errors import ProtocolError
from rowcast.protocol.frames import Parameters

# Far more rows than a page should have; whoever wants all of them leaves `limit` out.
_MAX_LIMIT: Final = 1_000_000
_SWITCH: Final = {"true": True, "1": True, "false": False, "0": False}
# What a subscription says of its rows and columns, by the same names as in a frame.
SELECTION: Final = frozenset({"filter", "where", "params", "columns"})

_decode_parameters: Final = msgspec.json.Decoder(Parameters).decode


class Query:
    """The parameters of one request.

    Args:
        text: What stands after the question mark.
        known: Names of the parameters that there are.

    Raises:
        ProtocolError: One is unknown.
    """

    def __init__(self, text: bytes, known: Iterable[str]) -> None:
        self._values = parse_qs(text.decode("latin-1"), keep_blank_values=True)
        unknown = sorted(self._values.keys() - known)
        if unknown:
            raise _wrong(f"unknown parameter {unknown[0]}; known: {', '.join(sorted(known))}")

    def all(self, name: str) -> list[str]:
        """Every value of a parameter that may be repeated, each once."""
        return list(dict.fromkeys(self._values.get(name, ())))

    def text(self, name: str) -> str | None:
        """The value of a parameter, None without it.

        Raises:
            ProtocolError: It is there twice.
        """
        values = self._values.get(name, (None,))
        if len(values) > 1:
            raise _wrong(f"{name} is there {len(values)} times: write it once")
        return values[0]

    def switch(self, name: str) -> bool:
        """Whether something is asked for; not without the parameter."""
        text = self.text(name)
        found = False if text is None else _SWITCH.get(text.lower())
        if found is None:
            raise _wrong(f"{name} is true or false, not {text}")
        return found

    def limit(self) -> int | None:
        """`limit`: how many rows, None for all."""
        text = self.text("limit")
        if text is None:
            return None
        number = int(text) if text.isascii() and text.isdecimal() and len(text) <= 9 else 0
        if not 0 < number <= _MAX_LIMIT:
            raise _wrong(
                f"limit is a whole number from 1 to {_MAX_LIMIT}, not {text or 'empty'}: "
                "write limit=1000, or leave it out for all rows"
            )
        return number

    def wait_seconds(self) -> float:
        """`wait`: how long the answer may take; 0 without it."""
        text = self.text("wait") or "0"
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        if not 0 <= seconds < math.inf:
            raise _wrong(f"wait is a number of seconds from 0 on without a unit, not {text}: write wait=20")
        return seconds

    def selection(self) -> dict[str, object]:
        """The fields of a `subscribe` frame that choose rows and columns."""
        fields: dict[str, object] = {
            name: text for name in ("filter", "where") if (text := self.text(name)) is not None
        }
        columns, params = self.text("columns"), self.text("params")
        if columns is not None:
            fields["columns"] = columns.split(",")
        if params is not None:
            try:
                fields["params"] = _decode_parameters(params)
            except msgspec.DecodeError as error:
                raise _wrong(f'params is a JSON list of values, such as [5,"a"]: {error}') from None
        return fields


def _wrong(sentence: str) -> ProtocolError:
    return ProtocolError("invalid_frame", sentence)
