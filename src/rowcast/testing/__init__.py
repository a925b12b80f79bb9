"""What Rowcast tests itself with, and what its users test with: an embedded PostgreSQL and fault tools."""

from rowcast.testing.postgres import EmbeddedPostgres, EmbeddedPostgresError, PostgresServer

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError", "PostgresServer"]
