"""Numbers keep their value on the way into Python."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import given, strategies as st

from rowcast.client.decoding import decode_frame, exact_number


@given(st.decimals(allow_nan=False, allow_infinity=False))
def test_every_decimal_keeps_its_value(number: Decimal) -> None:
    for text in (str(number), f"{number:f}"[:200]):
        read = exact_number(text)
        assert (Decimal(repr(read)) if isinstance(read, float) else read) == Decimal(text)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_what_a_float_holds_is_a_float(number: float) -> None:
    read = exact_number(repr(number))
    assert isinstance(read, float)
    assert read == number


def test_a_frame_holds_floats_decimals_and_integers_of_any_length() -> None:
    frame = decode_frame(
        b'{"a": 1.10, "b": 12345678901234567890.125, "c": 123456789012345678901234567890, "d": 1e400}'
    )
    assert frame == {
        "a": 1.1,
        "b": Decimal("12345678901234567890.125"),
        "c": 123456789012345678901234567890,
        "d": Decimal("1e400"),
    }
    assert isinstance(frame["a"], float)
