"""The floor of latency: a reader of the WAL that does nothing but note when each row arrives.

usage: python -m bench.wal_reader DSN PUBLICATION

Prints `ready`; for each line on standard input prints the latencies since the last one, as JSON.
"""

from __future__ import annotations

import json
import os
import select
import struct
import sys
import time
from typing import Final

import psycopg

_COLUMN_SENT_US: Final = 2
_WAL_DATA: Final = ord("w")
_INSERT: Final = ord("I")
_PAYLOAD_START: Final = 25
_STATUS_SECONDS: Final = 5.0
_POSTGRES_EPOCH_US: Final = 946_684_800_000_000


def main(dsn: str, publication: str) -> None:
    connection = psycopg.connect(dsn, autocommit=True, replication="database")
    connection.execute("CREATE_REPLICATION_SLOT bench_wal_reader TEMPORARY LOGICAL pgoutput")
    connection.execute(
        "START_REPLICATION SLOT bench_wal_reader LOGICAL 0/0"
        f" (proto_version '1', publication_names '\"{publication}\"')".encode()
    )
    stream = connection.pgconn
    stream.nonblocking = 1
    arrived: list[tuple[int, bytes]] = []
    print("ready", flush=True)
    status_at = time.monotonic()
    while True:
        readable, _, _ = select.select([stream.socket, sys.stdin.fileno()], [], [], _STATUS_SECONDS)
        if stream.socket in readable:
            stream.consume_input()
            now_us = time.time_ns() // 1000
            while True:
                size, data = stream.get_copy_data(1)
                if size <= 0:
                    break
                if data[0] == _WAL_DATA and data[_PAYLOAD_START] == _INSERT:
                    arrived.append((now_us, bytes(data)))
        if time.monotonic() - status_at > _STATUS_SECONDS:
            status_at = time.monotonic()
            now = time.time_ns() // 1000 - _POSTGRES_EPOCH_US
            stream.put_copy_data(struct.pack("!cQQQqB", b"r", 0, 0, 0, now, 0))
            stream.flush()
        if sys.stdin.fileno() in readable:
            if not os.read(sys.stdin.fileno(), 4096):
                return
            latencies = sorted(now_us - _sent_us(data) for now_us, data in arrived)
            arrived.clear()
            print(json.dumps(_percentiles(latencies)), flush=True)


def _percentiles(latencies: list[int]) -> dict[str, int]:
    last = len(latencies) - 1
    shares = {"p50_us": 0.5, "p95_us": 0.95, "p99_us": 0.99}
    return {"rows": len(latencies)} | {name: latencies[int(last * share)] for name, share in shares.items()}


def _sent_us(data: bytes) -> int:
    offset = _PAYLOAD_START + 8  # I, table, N, number of columns
    for _ in range(_COLUMN_SENT_US):
        offset += 5 + int.from_bytes(data[offset + 1 : offset + 5])
    length = int.from_bytes(data[offset + 1 : offset + 5])
    return int(data[offset + 5 : offset + 5 + length])


if __name__ == "__main__":
    main(*sys.argv[1:3])
