"""The sorts of values that settings have: how each is read, checked and shown. No I/O.

The one rule of this room: a value that cannot be used is answered with what to write instead.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeAlias, cast

_UNITS: Final = {"": 1, "b": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("b", 1000), ("ib", 1024))
}


@dataclass(frozen=True, slots=True)
class Kind:
    """One sort of value.

    Attributes:
        word: What `--help` and the docs call it.
        read: From text, or a value that already has the type; ValueError says what to write instead.
        show: The value as it would be written.
    """

    word: str
    read: Callable[[Any], Any]
    show: Callable[[Any], str] = str


def _read_count(value: object) -> int:
    text = str(value).strip().replace("_", "")
    if isinstance(value, bool) or not text.isdecimal() or int(text) < 1:
        raise ValueError("write a whole number of at least 1, such as 1000")
    return int(text)


def _read_port(value: object) -> int:
    text = str(value).strip()
    if text.startswith("tcp://"):
        raise ValueError(
            "this looks like the variable that Kubernetes sets for a service named rowcast: "
            "write enableServiceLinks: false into the pod's spec, or give --port"
        )
    if isinstance(value, bool) or not text.isdecimal() or int(text) > 65535:
        raise ValueError("write a number from 0 to 65535, such as 8000 (0 takes a free port)")
    return int(text)


def _read_seconds(value: object) -> float:
    try:
        seconds = float(str(value))
    except ValueError:
        seconds = math.nan
    if isinstance(value, bool) or not 0 < seconds < math.inf:
        raise ValueError("write a number of seconds over 0 without a unit, such as 15 or 0.5")
    return seconds


def _read_bytes(value: object) -> int:
    match = re.fullmatch(r"([0-9]+)(?:\.([0-9]+))?\s*([a-z]*)", str(value).strip().replace("_", "").lower())
    unit = _UNITS.get(match[3]) if match else None
    size = 0
    if match and unit:
        size = int(match[1]) * unit + (int(float(f"0.{match[2]}") * unit) if match[2] else 0)
    if isinstance(value, bool) or size < 1:
        raise ValueError(
            "write a number of bytes over 0, such as 64MiB (1024 based), 10MB (1000 based) or 1048576"
        )
    return size


def show_bytes(value: int) -> str:
    """A number of bytes in the largest unit that it is a whole number of."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if value % 1024**power == 0:
            return f"{value // 1024**power}{unit}"
    return str(value)


def _read_switch(value: object) -> bool:
    words = {
        "true": True,
        "on": True,
        "yes": True,
        "1": True,
        "false": False,
        "off": False,
        "no": False,
        "0": False,
    }
    found = words.get(str(value).strip().lower())
    if found is None:
        raise ValueError("write true or false (on/off, yes/no and 1/0 work too)")
    return found


def _read_names(value: object) -> tuple[str, ...]:
    """Names from a list, or from text with commas; a comma inside double quotes belongs to its name."""
    if isinstance(value, str):
        if value.count('"') % 2:
            raise ValueError('close the double quote, as in "Name, with comma",projects')
        items: list[object] = list(re.findall(r'(?:"[^"]*"|[^,"])+', value))
    elif isinstance(value, (list, tuple)):
        items = list(cast("list[object]", value))
    else:
        items = [value]
    if not all(isinstance(item, str) for item in items):
        raise ValueError("write names with commas between them, such as projects,billing.invoices")
    return tuple(dict.fromkeys(str(item).strip() for item in items if str(item).strip()))


def _read_scopes(value: object) -> dict[str, str]:
    if isinstance(value, Mapping):
        pairs = list(cast("Mapping[str, object]", value).items())
    else:
        pairs = [(table, column) for table, _, column in (name.partition("=") for name in _read_names(value))]
    if not all(isinstance(column, str) and table.strip() and column.strip() for table, column in pairs):
        raise ValueError(
            "write table=column pairs with commas between them, such as projects=org_id,jobs=team_id"
        )
    return {table.strip(): str(column).strip() for table, column in pairs}


def _read_origins(value: object) -> tuple[str, ...]:
    origins = tuple(name.rstrip("/").lower() for name in _read_names(value))
    for origin in origins:
        if origin != "*" and not re.fullmatch(
            r"https?://(?:[^/\s:@?#\[\]]+|\[[0-9a-f:.]+\])(?::[0-9]+)?", origin
        ):
            raise ValueError(
                "write origins as the browser sends them, scheme, host and port without a path, "
                "such as https://app.example.com,http://localhost:3000, or * for any"
            )
    return origins


def _show_scopes(scopes: Mapping[str, str]) -> str:
    return ",".join(f"{table}={column}" for table, column in scopes.items())


def _read_identifier(value: object) -> str:
    text = str(value)
    if not re.fullmatch(r"[a-z0-9_]{1,63}", text):
        raise ValueError("write 1 to 63 lower-case letters, digits and underscores, such as rowcast_staging")
    return text


def _read_database_url(value: object) -> str:
    text = str(value).strip()
    if re.match(r"postgres(?:ql)?\+\w+:", text):
        raise ValueError(
            "write postgresql:// without a driver's name after the +, which only SQLAlchemy knows"
        )
    if text and not re.match(r"postgres(?:ql)?://|\w+\s*=", text):
        raise ValueError("write postgresql://user:password@host:5432/database, or host=… dbname=… user=…")
    return text


def _read_text(value: object) -> str:
    text = str(value).strip()
    if not text:
        raise ValueError("write a host name or an address, such as 127.0.0.1, or 0.0.0.0 for all interfaces")
    return text


def choice(*words: str) -> Kind:
    """One of some words."""

    def read(value: object) -> str:
        text = str(value).strip().lower()
        if text not in words:
            raise ValueError(f"write one of {', '.join(words)}")
        return text

    return Kind(" | ".join(words), read)


def hide_password(url: str) -> str:
    """A connection string without its passwords; hides rather too much than too little.

    Reads both forms that libpq takes, `postgresql://…` and `host=… password=…`.
    """
    url = re.sub(r"(://[^:/?#@]*):.*@", r"\1:***@", url, flags=re.DOTALL)
    return re.sub(
        r"(password\s*=\s*)(?:'(?:[^'\\]|\\.)*'?|[^\s&]+)", r"\1***", url, flags=re.IGNORECASE | re.DOTALL
    )


DATABASE_URL: Final = Kind("URL", _read_database_url, hide_password)
Address: TypeAlias = Annotated[str, Kind("address", _read_text)]
DatabaseUrl: TypeAlias = Annotated[str, DATABASE_URL]
Names: TypeAlias = Annotated[tuple[str, ...], Kind("names", _read_names, ",".join)]
Origins: TypeAlias = Annotated[tuple[str, ...], Kind("origins", _read_origins, ",".join)]
Scopes: TypeAlias = Annotated[Mapping[str, str], Kind("table=column", _read_scopes, _show_scopes)]
Identifier: TypeAlias = Annotated[str, Kind("name", _read_identifier)]
Port: TypeAlias = Annotated[int, Kind("port", _read_port)]
Count: TypeAlias = Annotated[int, Kind("number", _read_count)]
Seconds: TypeAlias = Annotated[float, Kind("seconds", _read_seconds, lambda seconds: f"{seconds:g}")]
Bytes: TypeAlias = Annotated[int, Kind("bytes", _read_bytes, show_bytes)]
Switch: TypeAlias = Annotated[bool, Kind("on | off", _read_switch, lambda value: "on" if value else "off")]
