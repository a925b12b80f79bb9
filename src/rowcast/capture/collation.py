"""What can be repeated outside of PostgreSQL of how a collation sorts and lowers text. No I/O.

The one rule of this room: it claims only what the name of a locale makes sure. Whatever it does not know neither
sorts by code point nor lowers by a rule that we have.
"""

from __future__ import annotations

import re
from typing import Final, Literal

from rowcast.model import Collation

# Locales that sort by code point, without the dashes that a C library may leave out of their names.
_CODE_POINT_LOCALES: Final = frozenset({"C", "POSIX", "C.UTF8", "PG_UNICODE_FAST"})
# Languages in which a capital I, or an accented one, has another small letter than elsewhere: in ICU (CLDR) and in
# glibc's locales.
_OTHER_SMALL_LETTERS: Final = frozenset({"az", "crh", "ku", "lt", "tr", "tt"})


def describe_collation(
    name: str, provider: str, locale: str, character_locale: str, encoding: str, *, deterministic: bool
) -> Collation:
    """Describe a collation by what pg_collation (or pg_database, for the default one) says of it.

    Args:
        name: For messages.
        provider: `c` for the C library, `i` for ICU, `b` for built in.
        locale: The provider's locale, which sorts.
        character_locale: The locale that changes case. The C library has two, others have one.
        encoding: The database's. Bytes sort by code point in UTF8 only, and where they are not interpreted.
        deterministic: Whether texts are equal only if their bytes are.
    """
    by_bytes = provider != "i" and _canonical(locale) in _CODE_POINT_LOCALES
    return Collation(
        name=name,
        deterministic=deterministic,
        code_point_order=by_bytes and encoding in {"UTF8", "SQL_ASCII"},
        lower=_lower(provider, _canonical(character_locale), encoding),
    )


def _canonical(locale: str) -> str:
    language = re.split(r"[-_.@]", locale, maxsplit=1)[0]
    if language.lower() in _OTHER_SMALL_LETTERS:
        return language.lower()
    return locale.upper().replace("UTF-8", "UTF8")


def _lower(provider: str, locale: str, encoding: str) -> Literal["ascii", "simple", "full", "other"]:
    if provider != "i" and locale in {"C", "POSIX"}:
        return "ascii"
    if encoding != "UTF8" or locale in _OTHER_SMALL_LETTERS:
        return "other"
    return "full" if provider == "i" or locale == "PG_UNICODE_FAST" else "simple"
