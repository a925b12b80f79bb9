"""Every error Rowcast raises.

    RowcastError
    ├── ConfigurationError        a setting, flag or mounting is wrong; the text says what to write instead
    ├── CaptureError              PostgreSQL cannot be captured from
    │   ├── NotInstalledError     `rowcast setup` has not been run in this database
    │   └── SlotLostError         the replication slot is gone or invalidated
    ├── DecodeError               bytes from PostgreSQL that the decoder does not understand
    ├── FilterError               a filter that cannot be used: bad value, unsupported operator, syntax
    │   └── UnknownColumnError    it names a column that the table lacks
    ├── ProtocolError             a frame that breaks the wire protocol; carries its `code`
    └── ClientError               the client side: connection, store, mutations

Messages are sentences: what happened, why, and what to do about it.
"""

from __future__ import annotations


class RowcastError(Exception):
    """Base class of all errors raised by Rowcast."""


class ConfigurationError(RowcastError):
    """A setting, flag or mounting is wrong."""


class CaptureError(RowcastError):
    """PostgreSQL cannot be captured from, for the reason given."""


class NotInstalledError(CaptureError):
    """The database has no Rowcast objects yet."""


class SlotLostError(CaptureError):
    """The replication slot is gone or was invalidated by the server."""


class DecodeError(RowcastError):
    """Bytes from PostgreSQL that do not follow the documented format."""


class FilterError(RowcastError):
    """A filter that cannot be used on this table."""


class UnknownColumnError(FilterError):
    """A filter names a column that the table lacks."""


class ProtocolError(RowcastError):
    """A frame that breaks the wire protocol.

    Attributes:
        code: The stable identifier from docs/protocol.md, such as `malformed_json`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class ClientError(RowcastError):
    """The client side failed: connection, store or a mutation."""
