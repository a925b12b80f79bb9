"""The names that clients subscribe to, and the tables behind them.

The one rule of this room: what does not fit is refused, with what there is instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rowcast.errors import FilterError, ProtocolError, UnknownColumnError
from rowcast.filters import BoundFilter, Expression, bind, conjunction, equality
from rowcast.model import Table


class Channels:
    """The channels of one server.

    Args:
        tables: The captured tables by OID.
        offered: Names of the channels that clients may subscribe to; None for every captured table.
        scopes: Channel name → the column that `channel:value` filters by.

    Attributes:
        by_name: The table of each channel.
    """

    def __init__(
        self, tables: Mapping[int, Table], offered: Iterable[str] | None, scopes: Mapping[str, str] | None
    ) -> None:
        self.tables = tables
        self._offered = None if offered is None else frozenset(offered)
        self._scopes = scopes or {}
        self.by_name = self._named()

    def replace(self, tables: Mapping[int, Table]) -> set[int]:
        """Take these tables from now on; returns the OIDs of those that are not what they were, or not offered."""
        before, self.tables = self.tables, tables
        self.by_name = self._named()
        offered = {table.oid for table in self.by_name.values()}
        changed = {oid for oid in before.keys() | tables.keys() if tables.get(oid) is not before.get(oid)}
        return changed | {oid for oid in before if oid not in offered}

    def resolve(self, channel: str, expression: Expression | None) -> tuple[Table, BoundFilter | None]:
        """Find a channel's table and the filter that its scope and the subscription's own filter make.

        Raises:
            ProtocolError: Unknown channel or column, a filter that does not fit.
        """
        table = self.by_name.get(channel)
        if table is None:
            name, colon, value = channel.partition(":")
            column = self._scopes.get(name)
            table = self.by_name.get(name)
            if not colon or column is None or table is None:
                known = ", ".join(sorted({each.channel for each in self.by_name.values()})) or "none yet"
                raise ProtocolError("unknown_channel", f'there is no channel "{channel}"; known: {known}')
            scope = equality(column, value)
            expression = scope if expression is None else conjunction(scope, expression)
        if expression is None:
            return table, None
        try:
            return table, bind(expression, table)
        except FilterError as error:
            code = "unknown_column" if isinstance(error, UnknownColumnError) else "invalid_filter"
            raise ProtocolError(code, str(error)) from error

    @staticmethod
    def check_columns(table: Table, names: frozenset[str] | None) -> None:
        """Raise ProtocolError for a column that the table lacks."""
        known = [column.name for column in table.columns]
        for name in sorted(names or ()):
            if name not in known:
                raise ProtocolError(
                    "unknown_column", f'{table.channel} has no column "{name}"; it has: {", ".join(known)}'
                )

    def _named(self) -> dict[str, Table]:
        """A table of the schema public goes by its name, any other by schema.name; the schema may be written."""
        channels: dict[str, Table] = {}
        for table in self.tables.values():
            channels[f"{table.schema}.{table.name}"] = table
        for table in self.tables.values():
            channels[table.channel] = table
        if self._offered is not None:
            offered = {id(channels[name]) for name in self._offered if name in channels}
            channels = {name: table for name, table in channels.items() if id(table) in offered}
        return channels
