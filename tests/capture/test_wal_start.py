"""Starting the WAL capture: what is missing is named with its remedy, and the least rights are enough."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeAlias

import psycopg
import pytest
from tests.capture.following import Follower, capture, changes, watch

from rowcast.capture import install
from rowcast.capture.wal import WalCapture
from rowcast.errors import CaptureError, NotInstalledError
from rowcast.testing import EmbeddedPostgres


@pytest.fixture(scope="module")
def narrow() -> Iterator[EmbeddedPostgres]:
    """A server with room for one replication client and one slot."""
    with EmbeddedPostgres(settings={"max_wal_senders": "1", "max_replication_slots": "1"}) as server:
        yield server


@pytest.fixture
def jobs(connection: psycopg.Connection, dsn: str) -> psycopg.Connection:
    """A connection to a database with a watched table `jobs`."""
    connection.execute("CREATE TABLE jobs (id int PRIMARY KEY, state text)")
    watch(dsn, "jobs")
    return connection


async def refusal(refused: WalCapture) -> str:
    with pytest.raises(CaptureError) as caught:
        await refused.start()
    await refused.close()
    return str(caught.value)


async def test_a_database_that_was_not_set_up_says_which_command_does_it(
    connection: psycopg.Connection, dsn: str
) -> None:
    with pytest.raises(NotInstalledError, match=r"no schema rowcast: run: rowcast setup --dsn … --tables …$"):
        await capture(dsn).start()
    install.install(dsn)
    with pytest.raises(NotInstalledError, match=r"no publication other: run: .* --publication other"):
        await WalCapture(dsn, publication="other").start()
    assert connection.execute("SELECT count(*) FROM pg_replication_slots").fetchone() == (0,)


async def test_a_wal_level_below_logical_is_named() -> None:
    with EmbeddedPostgres(settings={"wal_level": "replica"}) as server:
        done = install.install(server.dsn(), capture="wal")
        assert any("wal_level" in sentence for sentence in done)
        assert "ALTER SYSTEM SET wal_level = logical" in await refusal(capture(server.dsn()))


async def test_a_standby_is_named() -> None:
    with EmbeddedPostgres() as server:
        server.stop()
        (server.data_directory / "standby.signal").touch()
        server.start()
        assert "is a standby" in await refusal(capture(server.dsn()))


async def test_servers_without_room_are_named(narrow: EmbeddedPostgres) -> None:
    install.install(narrow.dsn())
    other = narrow.create_database("other")
    install.install(other)
    first = WalCapture(narrow.dsn(), slot="first")
    await first.start()
    assert "no free replication slot" in await refusal(WalCapture(narrow.dsn(), slot="second"))
    assert "raise max_wal_senders" in await refusal(WalCapture(narrow.dsn(), slot="first"))
    await first.close()
    message = await refusal(WalCapture(other, slot="first"))
    assert "in database postgres" in message
    assert "ROWCAST_SLOT" in message


async def test_the_least_rights_are_enough_and_each_missing_one_is_named(
    jobs: psycopg.Connection, dsn: str, postgres: EmbeddedPostgres
) -> None:
    role = f"server_{jobs.info.dbname}"
    jobs.execute(f"CREATE ROLE {role} LOGIN".encode())
    role_dsn = dsn.replace("postgres@", f"{role}@")
    try:
        assert "rowcast setup --role" in await refusal(capture(role_dsn))
        done = install.install(dsn, role=role)
        assert any("lacks the REPLICATION right" in sentence for sentence in done)
        assert "REPLICATION" in await refusal(capture(role_dsn))
        jobs.execute(f"ALTER ROLE {role} REPLICATION".encode())
        async with Follower(capture(role_dsn)) as follower:
            jobs.execute("INSERT INTO jobs VALUES (1, 'x')")
            jobs.execute("ALTER TABLE jobs ADD note text")
            jobs.execute("INSERT INTO jobs VALUES (2, 'y', 'z')")
            await follower.caught_up()
            assert len(changes(follower.transactions)) == 2
        jobs.execute(f"ALTER ROLE {role} NOREPLICATION".encode())
        assert "ALTER ROLE … REPLICATION" in await refusal(capture(role_dsn))
        with psycopg.connect(role_dsn) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT * FROM jobs")
    finally:
        jobs.execute(f"DROP OWNED BY {role}".encode())
        jobs.execute(f"DROP ROLE {role}".encode())


async def test_a_database_that_is_not_there_is_no_reason_to_wait(postgres: EmbeddedPostgres) -> None:
    assert "Correct the connection URL" in await refusal(capture(postgres.dsn("no_such_database")))


Parameters: TypeAlias = dict[bytes, bytes]
PROTOCOL = 3 << 16
ENCRYPTION_REQUESTS = {80877103, 80877104}  # TLS and GSSAPI


@contextlib.asynccontextmanager
async def pooler(port: int, treat: Callable[[Parameters], str | None]) -> AsyncIterator[int]:
    """A PostgreSQL proxy that may change a connection's start-up parameters or refuse them, as poolers do."""

    tasks: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        code, content = 0, b""
        while code != PROTOCOL:
            size, code = struct.unpack("!II", await reader.readexactly(8))
            content = await reader.readexactly(size - 8)
            if code in ENCRYPTION_REQUESTS:
                writer.write(b"N")
        words = content.split(b"\0")
        parameters = dict(zip(words[0:-2:2], words[1:-2:2], strict=True))
        error = treat(parameters)
        if error is not None:
            body = f"SFATAL\0C08P01\0M{error}\0\0".encode()
            writer.write(b"E" + struct.pack("!I", len(body) + 4) + body)
            await close(writer)
            return
        start = b"".join(name + b"\0" + value + b"\0" for name, value in parameters.items()) + b"\0"
        from_server, to_server = await asyncio.open_connection("127.0.0.1", port)
        to_server.write(struct.pack("!II", len(start) + 8, PROTOCOL) + start)
        await asyncio.gather(pump(reader, to_server), pump(from_server, writer))

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await source.read(65536):
                sink.write(chunk)
        await close(sink)

    async def close(writer: asyncio.StreamWriter) -> None:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await asyncio.gather(*[task for task in tasks if task is not None])


def refuse_replication(parameters: Parameters) -> str | None:
    return "unsupported startup parameter: replication" if b"replication" in parameters else None


def ignore_replication(parameters: Parameters) -> None:
    parameters.pop(b"replication", None)


@pytest.mark.parametrize("treat", [refuse_replication, ignore_replication])
async def test_a_pooler_in_the_way_is_named(
    jobs: psycopg.Connection, dsn: str, postgres: EmbeddedPostgres, treat: Callable[[Parameters], str | None]
) -> None:
    async with pooler(postgres.port, treat) as port:
        message = await refusal(capture(dsn.replace(f":{postgres.port}", f":{port}")))
    assert "pooler stands between" in message
    assert "DATABASE_URL_DIRECT" in message


async def test_a_slot_that_was_made_by_hand_is_taken(jobs: psycopg.Connection, dsn: str) -> None:
    jobs.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [jobs.info.dbname])
    jobs.execute("INSERT INTO jobs VALUES (1, 'x')")
    async with Follower(capture(dsn)) as follower:
        await follower.caught_up()
        assert changes(follower.transactions) == [("INSERT", (b"1", b"x"), None)]
        epoch = follower.capture.epoch
    async with Follower(capture(dsn)) as follower:
        assert follower.capture.epoch == epoch


async def test_servers_that_start_together_make_one_slot(jobs: psycopg.Connection, dsn: str) -> None:
    captures = [capture(dsn) for _ in range(4)]
    starts = [asyncio.create_task(each.start()) for each in captures]
    epochs = set()
    while starts:
        done, _ = await asyncio.wait(starts, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            place = starts.index(task)
            epochs.add(captures[place].epoch)
            await captures[place].close()
            del captures[place], starts[place]
    assert len(epochs) == 1


async def test_starting_again_changes_nothing_and_not_starting_says_so(
    jobs: psycopg.Connection, dsn: str
) -> None:
    starting = capture(dsn)
    with pytest.raises(CaptureError, match=r"await start\(\) first"):
        _ = starting.epoch
    with pytest.raises(CaptureError, match="not started"):
        await starting.end_position()
    assert await starting.start() == await starting.start()
    await starting.close()
