"""capture.collation: what the name of a locale makes sure, and nothing else."""

from __future__ import annotations

import pytest

from rowcast.capture.collation import describe_collation


@pytest.mark.parametrize(
    ("provider", "locale", "code_point_order", "lower"),
    [
        ("c", "C", True, "ascii"),
        ("c", "POSIX", True, "ascii"),
        ("c", "C.UTF-8", True, "simple"),
        ("c", "C.utf8", True, "simple"),
        ("c", "en_US.UTF-8", False, "simple"),
        ("c", "de_DE@euro", False, "simple"),
        ("c", "tr_TR.UTF-8", False, "other"),
        ("b", "C", True, "ascii"),
        ("b", "C.UTF-8", True, "simple"),
        ("b", "PG_UNICODE_FAST", True, "full"),
        ("i", "und", False, "full"),
        ("i", "en-US-u-va-posix", False, "full"),
        ("i", "C", False, "full"),  # ICU takes it for the root locale
        ("i", "az-Latn", False, "other"),
        ("i", "lt", False, "other"),
    ],
)
def test_order_and_case_follow_from_provider_and_locale(
    *, provider: str, locale: str, code_point_order: bool, lower: str
) -> None:
    collation = describe_collation("x", provider, locale, locale, "UTF8", deterministic=True)
    assert (collation.code_point_order, collation.lower) == (code_point_order, lower)


def test_the_c_library_sorts_by_one_locale_and_changes_case_by_another() -> None:
    collation = describe_collation("x", "c", "C", "en_US.UTF-8", "UTF8", deterministic=True)
    assert (collation.code_point_order, collation.lower) == (True, "simple")


@pytest.mark.parametrize(
    ("encoding", "locale", "code_point_order", "lower"),
    [
        ("SQL_ASCII", "C", True, "ascii"),
        ("LATIN1", "C", False, "ascii"),
        ("LATIN1", "de_DE", False, "other"),
        ("EUC_JP", "ja_JP.eucjp", False, "other"),
    ],
)
def test_in_other_encodings_than_utf_8_less_is_sure(
    *, encoding: str, locale: str, code_point_order: bool, lower: str
) -> None:
    collation = describe_collation("x", "c", locale, locale, encoding, deterministic=False)
    assert (collation.code_point_order, collation.lower, collation.deterministic) == (
        code_point_order,
        lower,
        False,
    )
