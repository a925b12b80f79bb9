"""(d) Memory of an idle connection: subscribed in the plain form, nothing said since."""

from __future__ import annotations

import time
from typing import Final

from bench.deployment import TABLE, Database, Server, commit_many, connect
from bench.machine import memory_bytes, raise_file_limit
from bench.report import Section, Target, number, table

_CLIENTS: Final = 10_000
# Files that a process has open besides its connections.
_OTHER_FILES: Final = 200
_SETTLE_SECONDS: Final = 2.0


def measure(database: Database) -> Section:
    clients = min(_CLIENTS, raise_file_limit() - _OTHER_FILES)
    with database.fresh() as dsn, Server(dsn) as server, connect(dsn) as connection:
        # What is made at the first connection and the first change is not a connection's.
        with server.clients(100) as few:
            few.subscribe(f'{{"type":"subscribe","channel":"{TABLE}"}}')
            few.expect_each(1)
            commit_many(connection, 1)
            few.answer()
        time.sleep(_SETTLE_SECONDS)
        before = memory_bytes(server.pid)
        with server.clients(clients) as many:
            began = time.perf_counter()
            many.subscribe(f'{{"type":"subscribe","channel":"{TABLE}"}}')
            connected_seconds = time.perf_counter() - began
            time.sleep(_SETTLE_SECONDS)
            subscribed = memory_bytes(server.pid)
            many.expect_each(10)
            commit_many(connection, 10)
            many.answer()
            time.sleep(_SETTLE_SECONDS)
            told = memory_bytes(server.pid)
    each = (subscribed - before) / clients
    figures = table(
        ("connections", "bytes each"),
        [
            ("subscribed, idle", number(each)),
            ("after ten changes to all", number((told - before) / clients)),
        ],
    )
    text = f"""\
{clients:,} WebSocket clients, subscribed in the plain form within {connected_seconds:.1f} s: private memory of the server
process, less what it had before, by the number of clients. The kernel's socket buffers are not in it.

{figures}"""
    target = Target("server memory of an idle connection", "≤ 10 kB", f"{each / 1000:.1f} kB", each <= 10_000)
    return Section("Memory of a connection", text, [target])
