"""Writers for a table `items (id, org, note)`: run as a process, they end when their standard input does.

Each inserts, updates, deletes and changes keys in short and long transactions, some of which are rolled back.
"""

from __future__ import annotations

import random
import sys
import threading
import time

import psycopg

_STATEMENTS = (
    "INSERT INTO items VALUES (%(new)s, %(org)s, %(note)s) ON CONFLICT DO NOTHING",
    "UPDATE items SET note = %(note)s WHERE id = %(id)s",
    "UPDATE items SET org = %(org)s WHERE id = %(id)s",
    "UPDATE items SET id = %(new)s WHERE id = %(id)s",
    "DELETE FROM items WHERE id = %(id)s",
)
# Leaves the other core to server and clients; the races that matter need many transactions open, not many a second.
_PAUSE_SECONDS = 0.01


def write(dsn: str, seed: int, stop: threading.Event) -> None:
    chance = random.Random(seed)
    with psycopg.connect(dsn, autocommit=True) as connection:
        while not stop.wait(chance.random() * _PAUSE_SECONDS):
            try:
                with connection.transaction(force_rollback=chance.random() < 0.1):
                    for _ in range(chance.choice((1, 1, 2, 5))):
                        values = {
                            "id": chance.randrange(600),
                            "new": chance.randrange(600),
                            "org": chance.randrange(5),
                            "note": str(chance.random()),
                        }
                        connection.execute(chance.choice(_STATEMENTS), values)
                        if chance.random() < 0.2:
                            time.sleep(chance.random() * _PAUSE_SECONDS)
            except (psycopg.errors.UniqueViolation, psycopg.errors.DeadlockDetected):
                continue


def main() -> None:
    dsn, count = sys.argv[1], int(sys.argv[2])
    stop = threading.Event()
    threads = [threading.Thread(target=write, args=(dsn, seed, stop)) for seed in range(count)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
