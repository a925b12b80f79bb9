"""What the catalogs say of a collation → what filters may rely on. No I/O.

The one rule of this room: a property is claimed only where it follows from the provider and the locale's name, on
every operating system that PostgreSQL runs on.
"""

from __future__ import annotations

from typing import Final, Literal

from rowcast.model import Collation

# Azeri and Turkish have two letters i; Lithuanian keeps the dot of i below accents. The long forms are Windows' names.
_OWN_CASES: Final = ("az", "lt", "lit", "tr", "tur")
_C: Final = frozenset({"C", "POSIX"})


def describe_collation(
    name: str,
    *,
    provider: str,
    locale: str | None,
    collate: str | None,
    ctype: str | None,
    deterministic: bool = True,
    encoding: str = "UTF8",
) -> Collation:
    """Describe a row of pg_collation, or the database's own collation by its row of pg_database.

    Args:
        name: collname; for the database's own, its locale.
        provider: collprovider or datlocprovider: `c` libc, `i` ICU, `b` built in.
        locale: colllocale or datlocale (up to PostgreSQL 16 colliculocale, daticulocale).
        collate: collcollate or datcollate; only libc has it.
        ctype: collctype or datctype; only libc has it.
        deterministic: collisdeterministic.
        encoding: The database's encoding.
    """
    lower: Literal["ascii", "simple", "full", "other"]
    if provider == "c":
        # C.UTF-8 sorts by code points in every C library that has it.
        code_points = collate in _C or _is_c_utf8(collate)
        lower = "ascii" if ctype in _C else "simple"
        language = ctype
    elif provider == "b":
        code_points = True
        lower = "ascii" if locale == "C" else "full" if locale == "PG_UNICODE_FAST" else "simple"
        language = None
    else:
        code_points = False
        lower = "full"
        language = locale
    if (language or "").lower().startswith(_OWN_CASES):
        lower = "other"
    if encoding != "UTF8":  # text is sorted and lowered in the database's encoding and comes to us in UTF-8
        code_points, lower = False, "other"
    return Collation(name, deterministic, code_points and deterministic, lower)


def _is_c_utf8(collate: str | None) -> bool:
    return (collate or "").lower().replace("-", "") == "c.utf8"
